"""Any plan drawn as figure 2 of the AlexNet paper draws its two columns.

    program ──► graph ──► layout ──► shorten ──► scene ──► file
                who       what       not all     where     SVG or PNG, by matplotlib, which is
                reads                of it                 imported here alone

A row is a rank, a block what it holds of a layer's output, an arrow what it sends to another rank.
Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks",
NIPS 2012, figure 2.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.observe.picture.layout import lay_out
from orchestrator.observe.picture.scene import compose
from orchestrator.observe.picture.shorten import shorten
from orchestrator.program import Program


def draw_program(program: Program, path: Path) -> None:
    """Draw what each rank of ``program`` holds and sends.

    Args:
        path: a file that ends in .svg or .png.

    Raises:
        InputError: another suffix.
        OSError: the file cannot be written.
    """
    from orchestrator.observe.picture.render import save

    save(compose(shorten(lay_out(program))), path)
