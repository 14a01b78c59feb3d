"""Finds and reads a YAML file a user wrote, a plan or another kind, and applies ``KEY=VALUE``.

::

    name or path -> bytes -> text -> values and the line of each -> overrides put in
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath

from orchestrator.errors import InputError
from orchestrator.files import DESCRIPTORS, NotRegular, open_regular
from orchestrator.plan.origin import Origin
from orchestrator.plan.problem import Path, dotted, found, input_error, nearest, printable
from orchestrator.plan.shipped import shipped, shipped_names
from orchestrator.plan.strict_yaml import Document, read_document

LARGEST_FILE = 2**20
_STDIN = "/dev/stdin"


@dataclass(frozen=True)
class FileKind:
    """What messages about a kind of file say.

    Args:
        noun: such as ``plan``.
        folder: where the shipped ones lie.
        example: a shipped one.
        override: an example of ``KEY=VALUE``.
        prefix: of its keys on the command line.
    """

    noun: str
    folder: str
    example: str
    override: str
    prefix: str = ""


def read_values(
    text: str, label: str, folder: FilePath, overrides: Sequence[str], kind: FileKind
) -> tuple[dict[str, object], Origin]:
    """The mapping a text holds, overrides put in, and where each value was written.

    Raises:
        InputError: no mapping, or an override that has no place in it.
    """
    document = read_document(text, label)
    set_by: dict[Path, str] = {}
    origin = Origin(label, folder, document.lines, set_by)
    if document.problems:
        raise input_error(document.problems, origin.location)
    if not isinstance(document.value, dict):
        raise _not_a_mapping(document, label, kind)
    for override in overrides:
        _override(document, set_by, override, kind)
    return document.value, origin


def _not_a_mapping(document: Document, label: str, kind: FileKind) -> InputError:
    what = "the file is empty" if document.value is None else found(document.value)
    return InputError(
        f"{what}; allowed: a mapping of keys, the first of them schema_version: 1",
        f"{label}:{document.lines.get((), 1)}",
        f"begin with a copy of a shipped {kind.noun}, such as {kind.folder}/{kind.example}.yaml",
    )


def find_file(source: str | FilePath, kind: FileKind) -> FilePath:
    """The file of a path, or of a shipped name with or without its suffix and folder.

    Args:
        source: ``-`` is standard input.

    Raises:
        InputError: there is none.
    """
    path = FilePath(_STDIN if source == "-" else source)
    try:
        if path.is_file() or (path.exists() and not path.is_dir()):
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # too long, not permitted, a zero byte in it
        raise InputError(
            f"cannot read it: {_reason(error)}", printable(str(source)), "check the path"
        ) from None
    name = path.name.removesuffix(".yaml").removesuffix(".yml")
    names = shipped_names(kind.folder)
    if name in names and str(path.parent) in (".", kind.folder):
        return shipped(kind.folder) / f"{name}.yaml"
    if is_folder:
        inside = path / f"{kind.noun}.yaml"
        remedy = f"name a {kind.noun} file"
        if inside.is_file():
            remedy = f"name the file, such as {inside}"
        raise InputError("this is a folder; allowed: a file", printable(str(source)), remedy)
    near = nearest(name, names)
    remedy = f"did you mean {near}? " if near else ""
    raise InputError(
        f"no {kind.noun} file '{printable(str(source))}', and no shipped {kind.noun} of that name",
        remedy=f"{remedy}shipped {kind.noun}s: {', '.join(names)}",
    )


def label_of(path: FilePath) -> str:
    """As the user typed it, and a shipped file from the working folder if it lies in it."""
    if path.is_absolute():
        with suppress(OSError, ValueError):
            path = path.relative_to(FilePath.cwd())
    text = os.fspath(path)
    return text if text.isprintable() else printable(text)


def folder_of(path: FilePath) -> FilePath:
    """Where paths in a file start: its folder; for standard input the working folder."""
    return FilePath() if str(path).startswith(DESCRIPTORS) else path.parent


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_text(path: FilePath, kind: FileKind) -> str:
    """A file's text.

    Raises:
        InputError: it cannot be read, is no file, is too large or is not UTF-8.
    """
    label = label_of(path)
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST_FILE + 1)
    except NotRegular as error:
        raise InputError(
            f"cannot read it: {_reason(error)}", label, f"name a {kind.noun} file"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read it: {_reason(error)}", label, "check the path and rights"
        ) from None
    if len(data) > LARGEST_FILE:
        message = f"larger than {LARGEST_FILE} bytes; a {kind.noun} is some kilobytes"
        raise InputError(message, label, f"check that this is a {kind.noun} file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - before.rfind(b"\n")
        raise InputError(
            f"found the byte 0x{data[error.start]:02x}, which is not UTF-8",
            f"{label}:{before.count(10) + 1}:{column}",
            "save the file as UTF-8 text",
        ) from None


def _override(document: Document, set_by: dict[Path, str], override: str, kind: FileKind) -> None:
    """Puts one ``KEY=VALUE`` into the document's values; whether the key exists is seen later."""
    option = f"--set {kind.prefix}{printable(override)}"
    key, equals, text = override.partition("=")
    # Layer ranges such as fc6..fc8 are keys too, so two dots in a row separate nothing.
    parts = re.split(r"(?<!\.)\.(?!\.)", key.strip())
    if not equals or not all(parts):
        raise InputError(
            "allowed: KEY=VALUE", option, f"write it as --set {kind.prefix}{kind.override}"
        )
    try:
        value = read_document(text, option)
    except InputError as error:  # the option is its place; a line in it says nothing
        raise InputError(error.message, option, error.remedy) from None
    if value.problems:
        raise InputError(value.problems[0].message, option, value.problems[0].remedy)
    holder = document.value
    path: Path = ()
    for i, part in enumerate(parts):
        step = _step(holder, path, part, option, kind)
        path = (*path, step)
        if i == len(parts) - 1:
            holder[step] = value.value  # type: ignore[index]  # _step saw that it has the key
            break
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
            set_by[path] = option
        holder = holder[step]  # type: ignore[index]
    _forget(document.lines, path)
    _forget(set_by, path)
    set_by[path] = option


def _forget(places: MutableMapping[Path, int] | MutableMapping[Path, str], path: Path) -> None:
    for old in [old for old in places if old[: len(path)] == path]:
        del places[old]


def _step(holder: object, path: Path, part: str, option: str, kind: FileKind) -> str | int:
    """The key or index by which ``part`` is found in ``holder``."""
    if isinstance(holder, dict):
        return part
    whole = f"set it as a whole: --set '{kind.prefix}{'.'.join(map(str, path))}=...'"
    if isinstance(holder, list):
        if part.isascii() and part.isdigit() and len(part) < 8 and int(part) < len(holder):
            return int(part)
        allowed = f"0 to {len(holder) - 1}" if holder else "none, it is empty"
        message = f"found '{printable(part)}' as a place in {dotted(path)}; allowed: {allowed}"
        raise InputError(message, option, whole)
    message = f"{dotted(path)}: {found(holder)}, which holds no keys"
    raise InputError(message, option, whole)
