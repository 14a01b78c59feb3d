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

Towers stand above one another in lanes, around the row's line. Skips go over what they skip.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from orchestrator.observe.picture.labels import (
    alike_text,
    arrow_text,
    block_text,
    column_name,
    column_text,
    exchange_text,
    group_text,
    is_labelled_on_arrow,
    left_out_text,
    row_text,
)
from orchestrator.observe.picture.layout import (
    MOST_ROWS,
    Arrow,
    Block,
    Exchange,
    Picture,
    Reading,
)
from orchestrator.observe.picture.shapes import PLAIN, SMALL, Point, text_width

MARGIN = 12.0
HEADER = 62.0  # title, totals, names of the columns
STAGES = 16.0  # one more line
GROUPS = 18.0  # and one with headings
GAP = 26.0  # between columns
OBLIQUE = (0.34, 0.30)  # right and up, of a width into the page
LEAST_HALF = 26.0  # of a row's height
LABEL = 12.0  # one label's height
SIGN, BAR, LEAST_BAR = 12.0, 5.0, 26.0  # a sign's diameter; a bar's width and least height
LEAST_BAND = 2.5  # of a part's height within the whole
ARC, TRACK = 9.0, 13.0  # from an arc, or from an arrow that runs between rows, to the next one


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

    def part(self, block: Block) -> Box:
        """What a rank holds of the whole."""
        box = self
        for band in block.bands:
            start, share = band.start / band.size, (band.stop - band.start) / band.size
            if band.axis == _upwards(block.axes):
                y, height = box.y + box.height * start, max(LEAST_BAND, box.height * share)
                box = replace(box, y=y, height=height)
            else:  # into the page
                right, up = box.oblique
                width = max(LEAST_BAND, box.width * share)
                box = replace(box, x=box.x + right * start, y=box.y - up * start, width=width)
        return box


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
    """Levels from left to right, rows from top to bottom, and what stands in them.

    Args:
        columns: the level of each column.
        wholes: by row and column, the block's place; of a part the whole's.
        boxes: the same, of what the rank holds.
        arcs: by row and skip, the height of its arc.
        tracks: by exchange, arrow (None for all) and space between rows, the height at which
            arrows over several levels run.
        labels: by space between rows, the height of the middle of its labels.
    """

    columns: tuple[Span, ...]
    rows: tuple[Span, ...]
    wholes: dict[tuple[int, int], Box]
    boxes: dict[tuple[int, int], Box]
    arcs: dict[tuple[int, Reading], float]
    tracks: dict[tuple[Exchange, Arrow | None, int], float]
    labels: tuple[float, ...]

    def between(self, row: int) -> float:
        """Where labels stand between a row and the next one."""
        return self.labels[row]


def place(picture: Picture) -> Places:
    """Give columns and rows the room that their blocks and labels need."""
    levels = _levels(picture)
    columns = tuple(levels[column.level] for column in picture.columns)
    heights = [_RowHeights(picture, i) for i in range(len(picture.rows))]
    rows, labels, tracks = _rows(picture, heights)
    wholes = {}
    for block in picture.blocks:
        first, last = block.rows[0], block.rows[-1]
        offset = heights[first].offset(block) if first == last else 0.0
        middle = (rows[first].line + rows[last].line) / 2 + offset
        channels, height, width = heights[first].lengths(block)
        x = columns[block.column].middle - (channels + width * OBLIQUE[0]) / 2
        box = Box(x, middle - height / 2, channels, height, width)
        wholes.update({(row, block.column): box for row in block.rows})
    blocks = {(row, b.column): b for b in picture.blocks for row in b.rows}
    boxes = {
        at: box if picture.columns[at[1]].joins else box.part(blocks[at])
        for at, box in wholes.items()
    }
    arcs = {
        (i, reading): rows[i].line + top
        for i, height in enumerate(heights)
        for reading, top in height.arcs.items()
    }
    return Places(columns, tuple(rows), wholes, boxes, arcs, tracks, tuple(labels))


def lengths(block: Block) -> tuple[float, float, float]:
    """Points along channels, height and width; features of a dense layer go upwards.

    A second side is drawn as height, and what comes after the third into the width. Tokens go
    upwards, too.
    """
    shape = block.whole_shape
    if "token" in block.axes:
        token = block.axes.index("token")
        tokens, others = shape[token], shape[:token] + shape[token + 1 :]
        return max(4.0, 1.9 * prod(others) ** 0.5), 12.5 * tokens**0.4, 12.5
    if len(shape) == 1:
        return 7.0, min(110.0, max(14.0, 1.6 * shape[0] ** 0.5)), 18.0
    channels, height, width = shape[0], shape[1], prod(shape[2:])
    return 1.9 * channels**0.5, 12.5 * height**0.4, 12.5 * width**0.4


def _upwards(axes: tuple[str, ...]) -> str:
    """The axis that is drawn as height."""
    return "token" if "token" in axes else axes[1] if len(axes) > 1 else axes[0]


# -- from left to right ---------------------------------------------------------------------------


def _levels(picture: Picture) -> list[Span]:
    names = [row_text(row, picture) for row in picture.rows]
    names += [alike_text(row) for row in picture.rows if row.alike_below]
    x = MARGIN + 6 + max(text_width(name, PLAIN) for name in names) + 10
    by_level: defaultdict[int, list[int]] = defaultdict(list)
    for i, column in enumerate(picture.columns):
        by_level[column.level].append(i)
    groups = {picture.columns[group.last].level: group for group in picture.groups}
    found: list[Span] = []
    for level in sorted(by_level):
        if level:
            x += _gap(picture, level)
        wide = max(_width(picture, i) for i in by_level[level])
        found.append(Span(x, x + wide, x + wide / 2))
        x += wide
        if group := groups.get(level):
            start = found[picture.columns[group.first].level].low
            x = max(x, start + text_width(group_text(group), PLAIN) + 8)
    return found


def _width(picture: Picture, column: int) -> float:
    found = picture.columns[column]
    name = column_name(picture, column)
    # a name may reach into the gaps beside its column
    wide = max(text_width(name, SMALL), text_width(name, PLAIN) * 1.1 - GAP + 6)
    wide = max(wide, text_width(column_text(found), SMALL))
    for block in picture.blocks:
        if block.column == column:
            channels, _, width = lengths(block)
            if found.joins:
                channels, width = (BAR if found.drawn == "bar" else SIGN), 0.0
            wide = max(wide, text_width(block_text(block, found, picture), SMALL))
            wide = max(wide, channels + width * OBLIQUE[0])
    return wide


def _gap(picture: Picture, level: int) -> float:
    labels = [
        label
        for (before, _), found in gap_labels(picture).items() if before == level
        for label in found
    ]  # fmt: skip
    wide = max([GAP, *(text_width(label.text, SMALL) + 8 for label in labels)])
    arrows = {arrow for label in labels for _, arrow in label.ends}
    wide += 6 * max(0, len(arrows) - MOST_ROWS * 2)
    if picture.left_out and picture.left_out.level == level:
        wide += text_width(left_out_text(picture.left_out), SMALL) + 8
    return wide


def is_long(picture: Picture, way: Exchange | Reading) -> bool:
    """Whether something may stand between the two columns."""
    return picture.columns[way.source].level + 1 < picture.columns[way.column].level


class GapLabel(NamedTuple):
    """A text between two rows on some arrows between columns side by side; with no arrow, of all
    that an exchange sends."""

    text: str
    ends: tuple[tuple[Exchange, Arrow | None], ...]


def gap_labels(picture: Picture) -> dict[tuple[int, int], list[GapLabel]]:
    """By level before which they stand and space between rows.

    Where more than two would stand there, arrows of one direction and size share one.
    """
    found: defaultdict[tuple[int, int], list[GapLabel]] = defaultdict(list)
    for exchange in picture.exchanges:
        if is_long(picture, exchange):
            continue
        level = picture.columns[exchange.column].level
        if is_labelled_on_arrow(exchange):
            for arrow in sorted(exchange.arrows, key=lambda arrow: arrow.source):
                label = GapLabel(arrow_text(arrow), ((exchange, arrow),))
                found[level, arrow.space].append(label)
        else:
            spaces = sorted({arrow.space for arrow in exchange.arrows} or {
                outside(picture, row) for row in exchange.rows
            })  # fmt: skip
            label = GapLabel(exchange_text(exchange), ((exchange, None),))
            found[level, spaces[len(spaces) // 2]].append(label)
    return {
        at: labels if len(labels) <= 2 else list(_merged(labels)) for at, labels in found.items()
    }


def _merged(labels: list[GapLabel]) -> Iterator[GapLabel]:
    alike: defaultdict[tuple[object, ...], list[GapLabel]] = defaultdict(list)
    for label in labels:
        ((exchange, arrow),) = label.ends
        way = (arrow.source, arrow.target) if arrow else exchange
        alike[label.text, way].append(label)
    for same in alike.values():
        count = f"{len(same)} × " if len(same) > 1 else ""
        yield GapLabel(f"{count}{same[0].text}", tuple(end for x in same for end in x.ends))


def outside(picture: Picture, row: int) -> int:
    """The space between rows where the ranks are left out to which a row sends."""
    return row - 1 if row and not picture.rows[row].alike_below else row


# -- from top to bottom ---------------------------------------------------------------------------


class _RowHeights:
    """Heights within one row, downwards from its line: lanes of towers, arcs of skips.

    Args:
        row: position in the picture.
    """

    def __init__(self, picture: Picture, row: int) -> None:
        self.picture = picture
        self.own = [block for block in picture.blocks if block.rows == (row,)]
        self.levels = Counter(column.level for column in picture.columns)
        self.text_lines = max((self._text(block).count("\n") + 1 for block in self.own), default=0)
        self.lanes: dict[tuple[int, int], float] = {}
        regions: defaultdict[int, defaultdict[int, list[Block]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for block in self.own:
            column = picture.columns[block.column]
            regions[column.region][column.lane].append(block)
        self.of_column = {block.column: block for block in self.own}
        for region, by_lane in sorted(regions.items()):
            self._stack(region, by_lane)
        self.arcs: dict[Reading, float] = {}
        skips = [x for x in picture.readings if x.skip and row in x.rows]
        for reading in sorted(skips, key=self._reach):
            self._arc(reading)

    def _text(self, block: Block) -> str:
        return block_text(block, self.picture.columns[block.column], self.picture)

    def _reach(self, reading: Reading) -> tuple[int, int]:
        low, high = (self.picture.columns[i].level for i in (reading.source, reading.column))
        return high - low, low

    def _stack(self, region: int, by_lane: dict[int, list[Block]]) -> None:
        y = before = 0.0
        lines: list[float] = []
        for lane in sorted(by_lane):
            extents = [self.extents(block) for block in by_lane[lane]]
            y += before + max(above for above, _ in extents) if lines else 0.0
            lines.append(y)
            before = max(below for _, below in extents) + 4
        middle = (lines[0] + lines[-1]) / 2
        for lane, line in zip(sorted(by_lane), lines, strict=True):
            self.lanes[region, lane] = line - middle

    def offset(self, block: Block) -> float:
        """Of a block's middle from the row's line."""
        column = self.picture.columns[block.column]
        return self.lanes.get((column.region, column.lane), 0.0)

    def lengths(self, block: Block) -> tuple[float, float, float]:
        """Points along channels, height and width, as it is drawn."""
        column = self.picture.columns[block.column]
        if column.drawn == "bar":
            return BAR, self._bar(block), 0.0
        return (SIGN, SIGN, 0.0) if column.joins else lengths(block)

    def _bar(self, block: Block) -> float:
        """A bar reaches over the lanes of all that it joins."""
        column = self.picture.columns[block.column]
        joined = [
            self.offset(self.of_column[reading.source])
            for reading in self.picture.readings
            if reading.column == block.column and reading.source in self.of_column
        ]
        inside = any(c.lane for c in self.picture.columns if c.region == column.region)
        return LEAST_BAR if inside or not joined else LEAST_BAR + max(joined) - min(joined)

    def extents(self, block: Block) -> tuple[float, float]:
        """Above and below a block's middle, with its texts."""
        _, height, width = self.lengths(block)
        above = height / 2 + width * OBLIQUE[1] + 6
        if self.has_name(block.column):
            above += 2 * LABEL
        return above, height / 2 + self.text_lines * LABEL + 3

    def has_name(self, column: int) -> bool:
        """Whether its name stands above the block, not above the column."""
        return self.levels[self.picture.columns[column].level] > 1

    def _top(self, block: Block) -> float:
        return self.offset(block) - self.extents(block)[0]

    def _arc(self, reading: Reading) -> None:
        columns = self.picture.columns
        low, high = columns[reading.source].level, columns[reading.column].level
        tops = [self._top(b) for b in self.own if low <= columns[b.column].level <= high]
        for other, y in self.arcs.items():
            start, end = columns[other.source].level, columns[other.column].level
            if start < high and low < end:
                tops.append(y)
        self.arcs[reading] = min(tops) - ARC

    @property
    def above(self) -> float:
        """Above the row's line."""
        tops = [-self._top(block) for block in self.own]
        return max([LEAST_HALF, *tops, *(6 - y for y in self.arcs.values())])

    @property
    def below(self) -> float:
        """Below the row's line."""
        return max([LEAST_HALF, *(self.offset(b) + self.extents(b)[1] for b in self.own)])


def header(picture: Picture) -> float:
    """Where the rows start: below title, stages, headings and names."""
    stages = STAGES if picture.stages > 1 else 0
    return MARGIN + HEADER + stages + (GROUPS if picture.groups else 0)


def _rows(
    picture: Picture, heights: list[_RowHeights]
) -> tuple[list[Span], list[float], dict[tuple[Exchange, Arrow | None, int], float]]:
    y = header(picture)
    rows: list[Span] = []
    labels: list[float] = []
    tracks: dict[tuple[Exchange, Arrow | None, int], float] = {}
    for i, (row, height) in enumerate(zip(picture.rows, heights, strict=True)):
        above, below = height.above, height.below
        rows.append(Span(y, y + above + below, y + above))
        y = rows[-1].high
        runs = _tracks(picture, i)
        tracks.update({run: y + TRACK * (number + 1) for run, number in runs.items()})
        y += TRACK * (max(runs.values()) + 1) if runs else 0.0
        space = _space(picture, i, row.alike_below)
        labels.append(y + space / 2)
        y += space
    return rows, labels, tracks


def _tracks(picture: Picture, space: int) -> dict[tuple[Exchange, Arrow | None, int], int]:
    """Numbers of the tracks in a space between rows; those that do not meet share one."""
    found: dict[tuple[Exchange, Arrow | None, int], int] = {}
    taken: list[list[tuple[int, int]]] = []
    for exchange in picture.exchanges:
        if not is_long(picture, exchange):
            continue
        low, high = (picture.columns[i].level for i in (exchange.source, exchange.column))
        own = [arrow for arrow in exchange.arrows if arrow.space == space]
        runs = own if is_labelled_on_arrow(exchange) else [None] if own else []
        for run in runs:
            free = (all(high <= a or b <= low for a, b in track) for track in taken)
            number = next((n for n, fits in enumerate(free) if fits), len(taken))
            if number == len(taken):
                taken.append([])
            taken[number].append((low, high))
            found[exchange, run, space] = number
    return found


def _space(picture: Picture, row: int, alike_below: int) -> float:
    """Below a row: room for labels of arrows that cross it."""
    crossed = bool(alike_below)
    for exchange in picture.exchanges:
        if not is_long(picture, exchange):
            for arrow in exchange.arrows:
                low, high = sorted((arrow.source, arrow.target))
                crossed = crossed or low <= row < high
    labels = [len(found) for (_, space), found in gap_labels(picture).items() if space == row]
    most = max(labels, default=0)
    if not crossed:
        return 0.8 * LABEL
    return 3 * LABEL if most <= 2 else 1.6 * LABEL * most
