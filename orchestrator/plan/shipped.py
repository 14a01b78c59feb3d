"""Finds the folders that ship with the package: ``partitions``, ``cluster``, ``dashboards``.

A wheel carries them inside the package; in a source checkout they stand beside it::

    site-packages/orchestrator/_shipped/partitions/single.yaml
    checkout/orchestrator/            checkout/partitions/single.yaml
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path:
    """The shipped folder of that name.

    Raises:
        InputError: the installation lacks it.
    """
    # Inside first: beside an installed package, a folder of this name is somebody else's.
    for candidate in (_PACKAGE / "_shipped" / folder, _PACKAGE.parent / folder):
        if candidate.is_dir():
            return candidate
    raise InputError(
        f"this installation has no folder {folder!r}", str(_PACKAGE), "install orchestrator again"
    )


def shipped_names(folder: str, suffix: str = ".yaml") -> tuple[str, ...]:
    """The names of the shipped files in a folder, without their suffix, in order."""
    return tuple(sorted(path.stem for path in shipped(folder).glob(f"*{suffix}")))
