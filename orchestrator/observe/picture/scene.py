"""A picture as shapes: blocks with the kernels that move over them, arrows, brackets, legend."""

from __future__ import annotations

from collections import defaultdict

from orchestrator.observe.palette import COMPUTE, EXPOSED
from orchestrator.observe.picture.labels import (
    alike_text,
    arrow_text,
    block_text,
    column_text,
    exchange_text,
    is_told_by_arrow,
    reduction_text,
    row_text,
)
from orchestrator.observe.picture.layout import Block, Exchange, Picture, Reduction
from orchestrator.observe.picture.places import (
    GAP,
    HEADER,
    LABEL,
    MARGIN,
    STAGES,
    Box,
    Places,
    place,
)
from orchestrator.observe.picture.shapes import (
    BACKGROUND,
    FAINT,
    LARGE,
    LINE_SPACING,
    PLAIN,
    SMALL,
    Line,
    Point,
    Polygon,
    Scene,
    Text,
    tint,
)

FRONT, TOP, RIGHT = (tint(COMPUTE, share) for share in (0.16, 0.08, 0.28))
LEAST_WIDTH = 600.0


def compose(picture: Picture) -> Scene:
    """Give everything in a picture its place and its shape."""
    places, scene = place(picture), Scene()
    end = places.columns[-1].high + 8
    for row in places.rows:
        corners = ((MARGIN, row.low), (end, row.low), (end, row.high), (MARGIN, row.high))
        scene.shapes.append(Polygon(corners, BACKGROUND, edge=""))
    _title(scene, picture)
    _columns(scene, picture, places)
    _rows(scene, picture, places)
    for block in picture.blocks:
        _block(scene, block, places)
    _readings(scene, picture, places)
    for exchange in picture.exchanges:
        _exchange(scene, exchange, picture, places)
    _reductions(scene, picture.reductions, places, end)
    bottom = _legend(scene, picture, places.rows[-1].high + 34)
    ends = [t.at[0] + t.width for t in scene.texts if t.anchor == "left"]
    scene.width = max(LEAST_WIDTH, end, *ends) + MARGIN
    scene.height = bottom + MARGIN
    return scene


def _title(scene: Scene, picture: Picture) -> None:
    ranks = f"{picture.world_size} rank" + "s" * (picture.world_size > 1)
    sent = (
        f"sent in a step: {picture.activation_bytes:,} bytes of activations, "
        f"{picture.gradient_bytes:,} of gradients"
        f"{' (ring equivalent)' if picture.gradient_bytes else ''}"
    )
    what = f"{picture.model} on {ranks}, batch {picture.batch}, {picture.parameters:,} parameters"
    scene.texts += [
        Text((MARGIN, MARGIN + 6), picture.name, LARGE, "left", bold=True),
        Text((MARGIN, MARGIN + 22), f"{what}; {sent}", PLAIN, "left", FAINT),
    ]


def _columns(scene: Scene, picture: Picture, places: Places) -> None:
    names = MARGIN + HEADER - 20 + (STAGES if picture.stages > 1 else 0)
    bottom = places.rows[-1].high
    for i, (column, span) in enumerate(zip(picture.columns, places.columns, strict=True)):
        scene.texts.append(Text((span.middle, names), column.layer, PLAIN, bold=True))
        if detail := column_text(column):
            scene.texts.append(Text((span.middle, names + 11), detail, color=FAINT))
        if column.pooled and column.kind != "pool":
            last = i == len(places.columns) - 1
            right = span.high + GAP if last else places.columns[i + 1].low
            middle = ((span.high + right) / 2, bottom + 14)
            scene.texts.append(Text(middle, "max\npooling", color=FAINT))
        if picture.stages > 1 and (i == 0 or column.stage != picture.columns[i - 1].stage):
            left = MARGIN if i == 0 else (places.columns[i - 1].high + span.low) / 2
            if i:
                ends = ((left, names - STAGES - 6), (left, bottom))
                scene.shapes.append(Line(ends, FAINT, dashed=True))
            text = f"stage {column.stage}"
            scene.texts.append(Text((max(left + 4, span.low), names - STAGES), text, PLAIN, "left"))


def _rows(scene: Scene, picture: Picture, places: Places) -> None:
    for i, (row, span) in enumerate(zip(picture.rows, places.rows, strict=True)):
        at = (MARGIN + 6, span.line)
        scene.texts.append(Text(at, row_text(row, picture.batch), PLAIN, "left"))
        if row.alike_below:
            at = (MARGIN + 6, places.between(i))
            scene.texts.append(Text(at, alike_text(row), PLAIN, "left", FAINT))


# -- blocks ---------------------------------------------------------------------------------------


def _block(scene: Scene, block: Block, places: Places) -> None:
    box = places.box(block)
    _cuboid(scene, box)
    if text := block_text(block):
        below = box.y + box.height + 2 + (text.count("\n") + 1) * LABEL / 2
        scene.texts.append(Text((box.center, below), text))


def _cuboid(scene: Scene, box: Box) -> None:
    x, y, right, bottom = box.x, box.y, box.x + box.channels, box.y + box.height
    dx, dy = box.oblique
    scene.shapes += [
        Polygon(((x, y), (right, y), (right, bottom), (x, bottom)), FRONT),
        Polygon(((x, y), (right, y), (right + dx, y - dy), (x + dx, y - dy)), TOP),
        Polygon(
            ((right, y), (right + dx, y - dy), (right + dx, bottom - dy), (right, bottom)), RIGHT
        ),
    ]


def _readings(scene: Scene, picture: Picture, places: Places) -> None:
    """What a rank's next layer reads of its own: a kernel's cone, or all of it."""
    blocks = _blocks_at(picture)
    for (row, column), block in blocks.items():
        after = blocks.get((row, column + 1))
        if after is None:
            continue
        reader = picture.columns[column + 1]
        source, target = places.box(block), places.box(after)
        if reader.kernel:
            share = reader.kernel / block.shape[-1]
            _kernel(scene, source, target, share, block.rows.index(row), len(block.rows))
        else:
            _fan(scene, source, target)


def _kernel(scene: Scene, source: Box, target: Box, share: float, place: int, count: int) -> None:
    """A kernel through the whole depth of ``source``, and lines to the one value it gives.

    Args:
        share: of the side of ``source``; drawn larger where it is small.
        place, count: which of the kernels that move over ``source``, from top to bottom.
    """
    share = min(max(share, 0.22), 0.6, 0.8 / count)
    height, (dx, dy) = source.height * share, source.oblique
    y = source.y + (place + 0.5) / count * source.height - height / 2
    x, right = source.x + 0.3 * dx, source.x + source.channels + 0.3 * dx
    y -= 0.3 * dy
    kx, ky = dx * share, dy * share
    face = ((right, y), (right + kx, y - ky), (right + kx, y - ky + height), (right, y + height))
    front = ((x, y), (right, y), (right, y + height), (x, y + height), (x, y))
    lid = ((x, y), (x + kx, y - ky), (right + kx, y - ky))
    apex = (target.x + min(5.0, target.channels / 2), target.middle - target.height / 6)
    scene.shapes += [
        Line(front),
        Line(lid),
        Line((*face, face[0])),
        *(Line((corner, apex), FAINT, 0.4, dashed=True) for corner in face),
    ]


def _fan(scene: Scene, source: Box, target: Box) -> None:
    """Every value of ``target`` reads every value of ``source``."""
    right, (dx, dy) = source.x + source.channels, source.oblique
    upper, lower = (right + dx, source.y - dy), (right, source.y + source.height)
    scene.shapes += [
        Line((upper, (target.x, target.y)), FAINT, 0.4, dashed=True),
        Line((lower, (target.x, target.y + target.height)), FAINT, 0.4, dashed=True),
    ]


def _blocks_at(picture: Picture) -> dict[tuple[int, int], Block]:
    return {(row, block.column): block for block in picture.blocks for row in block.rows}


# -- communication --------------------------------------------------------------------------------


def _exchange(scene: Scene, exchange: Exchange, picture: Picture, places: Places) -> None:
    blocks = _blocks_at(picture)

    def leaves(row: int) -> Point:
        box = places.box(blocks[row, exchange.column - 1])
        return box.x + box.channels + box.oblique[0], box.middle - box.oblique[1]

    def enters(row: int) -> Point:
        box = places.box(blocks[row, exchange.column])
        return box.x, box.middle + box.height / 8

    gap = (places.columns[exchange.column - 1].high + places.columns[exchange.column].low) / 2
    labels: defaultdict[int, list[tuple[str, Point, Point]]] = defaultdict(list)
    for arrow in sorted(exchange.arrows, key=lambda arrow: arrow.source):
        start, end = leaves(arrow.source), enters(arrow.target)
        scene.shapes.append(Line((start, end), EXPOSED, 1.2, head=True))
        labels[arrow.space].append((arrow_text(arrow), start, end))
    if not exchange.arrows:  # every peer is left out: out to them, and back
        for row in exchange.rows:
            space = row - 1 if row and not picture.rows[row].alike_below else row
            outside = (gap, places.between(space))
            labels[space] = []
            if (row, exchange.column - 1) in blocks:
                scene.shapes.append(Line((leaves(row), outside), EXPOSED, 1.2))
            if (row, exchange.column) in blocks:
                scene.shapes.append(Line((outside, enters(row)), EXPOSED, 1.2, head=True))
    if is_told_by_arrow(exchange):
        for row, found in labels.items():
            _labels(scene, places.between(row), found)
        return
    crossed = sorted(labels)
    at = (gap, places.between(crossed[len(crossed) // 2]))
    scene.texts.append(Text(at, exchange_text(exchange), color=EXPOSED, boxed=True))


def _labels(scene: Scene, middle: float, found: list[tuple[str, Point, Point]]) -> None:
    """Labels on arrows that cross the same space between rows, one above the other."""
    for i, (text, (x1, y1), (x2, y2)) in enumerate(found):
        y = middle + (i - (len(found) - 1) / 2) * 1.6 * LABEL
        x = x1 + (x2 - x1) * (y - y1) / (y2 - y1)
        scene.texts.append(Text((x, y), text, color=EXPOSED, boxed=True))


def _reductions(
    scene: Scene, reductions: tuple[Reduction, ...], places: Places, end: float
) -> None:
    """A bracket for every group; labels to the right of all."""
    text_x = end + 12 + 9 * len(reductions)
    taken: list[tuple[float, float]] = []
    for i, reduction in enumerate(reductions):
        x = end + 8 + 9 * i
        lines = [places.rows[row].line for row in reduction.rows]
        top, bottom = lines[0] - 10, lines[-1] + 10
        scene.shapes.append(Line(((x, top), (x, bottom)), EXPOSED, 1.2))
        for line in (top, bottom):
            scene.shapes.append(Line(((x - 5, line), (x, line)), EXPOSED, 1.2))
        text = reduction_text(reduction)
        half = SMALL * LINE_SPACING * (text.count("\n") + 1) / 2 + 2
        y = (top + bottom) / 2
        while clash := next((t for t in taken if t[0] < y + half and y - half < t[1]), None):
            y = clash[1] + half
        taken.append((y - half, y + half))
        scene.shapes.append(Line(((x, (top + bottom) / 2), (text_x - 3, y)), EXPOSED, 0.5))
        scene.texts.append(Text((text_x, y), text, anchor="left", color=EXPOSED))


# -- legend ---------------------------------------------------------------------------------------


def _legend(scene: Scene, picture: Picture, top: float) -> float:
    """What a block, a cone, an arrow and its number are; gives where it ends."""
    x, y = MARGIN + 8, top + 8
    _cuboid(scene, Box(x, y - 4, 8, 9, 16))
    lines = ["what a rank holds of a layer's output: height × width × channels, or features"]
    if any(column.kernel for column in picture.columns):
        y += 18
        apex = (x + 22, y)
        face = ((x, y - 3), (x + 4, y - 6), (x + 4, y + 3), (x, y + 6))
        scene.shapes.append(Line((*face, face[0])))
        scene.shapes += [Line((corner, apex), FAINT, 0.4, dashed=True) for corner in face]
        lines.append("a kernel, and the one value that it gives")
    if picture.exchanges:
        y += 18
        scene.shapes.append(Line(((x, y), (x + 22, y)), EXPOSED, 1.2, head=True))
        lines.append(_arrow_legend(picture))
    if picture.reductions:
        y += 18
        scene.shapes.append(Line(((x + 4, y - 6), (x + 9, y - 6), (x + 9, y + 6), (x + 4, y + 6)),
                                 EXPOSED, 1.2))  # fmt: skip
        lines.append(
            "ranks that hold the same parameters and sum their gradients (bytes: ring equivalent)"
        )
    for i, line in enumerate(lines):
        scene.texts.append(Text((x + 32, top + 8 + 18 * i), line, anchor="left"))
    return y + 8


def _arrow_legend(picture: Picture) -> str:
    arrows = [arrow for exchange in picture.exchanges for arrow in exchange.arrows]
    text = "activations that one rank sends another, bytes in a step's forward"
    if all(arrow.backward == arrow.forward for arrow in arrows):
        text += "; the backward returns as many"
    if not all(map(is_told_by_arrow, picture.exchanges)):
        text += "; N × bytes: so many on each of N edges"
    return text
