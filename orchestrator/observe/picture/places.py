"""Where the columns, rows and blocks of a picture stand.

A block's front is channels x height; its width goes obliquely to the right and back, as in the
paper. Lengths grow more slowly than the numbers, or a 224 x 224 image would dwarf a 13 x 13 map:

             ____________
            /           /|
           /___________/ |    the right face, height x width, is the map that
    height |           | |    the next layer's kernel moves over
           |           | /
           |___________|/ width
              channels
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from orchestrator.observe.picture.labels import (
    alike_text,
    arrow_text,
    block_text,
    column_text,
    exchange_text,
    is_told_by_arrow,
    row_text,
)
from orchestrator.observe.picture.layout import Block, Exchange, Picture
from orchestrator.observe.picture.shapes import PLAIN, SMALL, Point, text_width

MARGIN = 12.0
HEADER = 62.0  # title, totals, names of the columns
STAGES = 16.0  # one more line
GAP = 26.0  # between columns
OBLIQUE = (0.34, 0.30)  # right and up, of a width into the page
LEAST_HALF = 26.0  # of a row's height
LABEL = 12.0  # one label's height


@dataclass(frozen=True)
class Box:
    """A block's place: the front's upper left corner, and lengths in points."""

    x: float
    y: float
    channels: float
    height: float
    width: float

    @property
    def oblique(self) -> Point:
        """From the front to the back: right, up."""
        return self.width * OBLIQUE[0], self.width * OBLIQUE[1]

    @property
    def middle(self) -> float:
        """Height of the front's middle."""
        return self.y + self.height / 2

    @property
    def center(self) -> float:
        """Middle from left to right, the oblique side included."""
        return self.x + (self.channels + self.oblique[0]) / 2


@dataclass(frozen=True)
class Span:
    """From ``low`` to ``high``; ``line`` is where the middle of the fronts stands."""

    low: float
    high: float
    line: float

    @property
    def middle(self) -> float:
        """Half way."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Places:
    """Columns from left to right, rows from top to bottom."""

    columns: tuple[Span, ...]
    rows: tuple[Span, ...]

    def box(self, block: Block) -> Box:
        """A block's place: in its column, at the middle of its rows."""
        channels, height, width = lengths(block.shape)
        x = self.columns[block.column].middle - (channels + width * OBLIQUE[0]) / 2
        middle = (self.rows[block.rows[0]].line + self.rows[block.rows[-1]].line) / 2
        return Box(x, middle - height / 2, channels, height, width)

    def between(self, row: int) -> float:
        """Half way between a row and the next one."""
        return (self.rows[row].high + self.rows[row + 1].low) / 2


def place(picture: Picture) -> Places:
    """Give columns and rows the room that their blocks and labels need."""
    return Places(tuple(_columns(picture)), tuple(_rows(picture)))


def lengths(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Points along channels, height and width; features of a dense layer go upwards.

    A second side is drawn as height, and what comes after the third into the width.
    """
    if len(shape) == 1:
        return 7.0, min(110.0, max(14.0, 1.6 * shape[0] ** 0.5)), 18.0
    channels, height, width = shape[0], shape[1], prod(shape[2:])
    return 1.9 * channels**0.5, 12.5 * height**0.4, 12.5 * width**0.4


def _columns(picture: Picture) -> list[Span]:
    names = [row_text(row, picture.batch) for row in picture.rows]
    names += [alike_text(row) for row in picture.rows if row.alike_below]
    x = MARGIN + 6 + max(text_width(name, PLAIN) for name in names) + 10
    exchanges = {exchange.column: exchange for exchange in picture.exchanges}
    found = []
    for i, column in enumerate(picture.columns):
        if i:
            x += _gap(exchanges.get(i))
        texts = [column.layer, column_text(column)]
        blocks = [block for block in picture.blocks if block.column == i]
        texts += [block_text(block) for block in blocks]
        wide = max(text_width(text, SMALL) for text in texts)
        for block in blocks:
            channels, _, width = lengths(block.shape)
            wide = max(wide, channels + width * OBLIQUE[0])
        found.append(Span(x, x + wide, x + wide / 2))
        x += wide
    return found


def _gap(exchange: Exchange | None) -> float:
    if exchange is None:
        return GAP
    if is_told_by_arrow(exchange):
        texts = [arrow_text(arrow) for arrow in exchange.arrows]
    else:
        texts = [exchange_text(exchange)]
    return max(GAP, *(text_width(text, SMALL) + 8 for text in texts))


def _rows(picture: Picture) -> list[Span]:
    y = MARGIN + HEADER + (STAGES if picture.stages > 1 else 0)
    found = []
    for i, row in enumerate(picture.rows):
        own = [block for block in picture.blocks if block.rows == (i,)]
        sizes = [lengths(block.shape) for block in own]
        above = max([LEAST_HALF, *(h / 2 + w * OBLIQUE[1] + 6 for _, h, w in sizes)])
        labels = max((block_text(block).count("\n") + 1 for block in own), default=0)
        below = max([LEAST_HALF, *(h / 2 + labels * LABEL + 3 for _, h, _ in sizes)])
        found.append(Span(y, y + above + below, y + above))
        y = found[-1].high + _space(picture, i, row.alike_below)
    return found


def _space(picture: Picture, row: int, alike_below: int) -> float:
    """Below a row: room for labels of arrows that cross it."""
    crossed = alike_below or any(
        min(arrow.source, arrow.target) <= row < max(arrow.source, arrow.target)
        for exchange in picture.exchanges
        for arrow in exchange.arrows
    )
    return 3 * LABEL if crossed else 0.8 * LABEL
