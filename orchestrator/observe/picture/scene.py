"""A picture as shapes: blocks with the kernels that move over them, arrows, brackets, legend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import cos, hypot, pi, sin

from orchestrator.models.value import IMAGE_AXES, SEQUENCE_AXES
from orchestrator.observe.palette import BUBBLE, COMPUTE, EXPOSED
from orchestrator.observe.picture.labels import (
    POOLS,
    alike_text,
    arrow_text,
    band_name,
    block_text,
    column_name,
    column_text,
    exchange_text,
    group_text,
    is_labelled_on_arrow,
    left_out_text,
    reduction_text,
    row_text,
)
from orchestrator.observe.picture.layout import (
    Arrow,
    Block,
    Column,
    Exchange,
    Picture,
    Reading,
    Reduction,
)
from orchestrator.observe.picture.places import (
    ARC,
    GAP,
    GROUPS,
    LABEL,
    MARGIN,
    OBLIQUE,
    STAGES,
    Box,
    GapLabel,
    Places,
    Span,
    gap_labels,
    header,
    is_long,
    outside,
    place,
)
from orchestrator.observe.picture.shapes import (
    BACKGROUND,
    FAINT,
    INK,
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

SHADES = (0.16, 0.08, 0.28)  # of a block's front, top and right face
PART = tuple(tint(COMPUTE, share) for share in SHADES)
WHOLE = tuple(tint(BUBBLE, 0.1 + share) for share in SHADES)
LEAST_WIDTH = 600.0


def compose(picture: Picture) -> Scene:
    """Give everything in a picture its place and its shape."""
    places, scene = place(picture), Scene()
    end = max(span.high for span in places.columns) + 8
    for row in places.rows:
        corners = ((MARGIN, row.low), (end, row.low), (end, row.high), (MARGIN, row.high))
        scene.shapes.append(Polygon(corners, BACKGROUND, edge=""))
    _title(scene, picture)
    _columns(scene, picture, places)
    _rows(scene, picture, places)
    for block in picture.blocks:
        _block(scene, block, picture, places)
    _readings(scene, picture, places)
    _exchanges(scene, picture, places)
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
    names = header(picture) - 20
    groups = names - (GROUPS if picture.groups else 0)
    bottom = places.rows[-1].high
    for i, (column, span) in enumerate(zip(picture.columns, places.columns, strict=True)):
        before = _before(picture, places, column)
        alone = all(j == i or c.level != column.level for j, c in enumerate(picture.columns))
        if alone and (name := column_name(picture, i)):
            scene.texts.append(Text((span.middle, names), name, PLAIN, bold=True))
            if detail := column_text(column):
                scene.texts.append(Text((span.middle, names + 11), detail, color=FAINT))
        if column.pooled:
            after = [s.low for s in places.columns if s.low > span.high]
            middle = ((span.high + min(after, default=span.high + GAP)) / 2, bottom + 14)
            scene.texts.append(Text(middle, POOLS.get(column.pooled, "pooling"), color=FAINT))
        if picture.stages > 1 and (i == 0 or column.stage != picture.columns[i - 1].stage):
            left = MARGIN if before is None else (before.high + span.low) / 2
            if before is not None:
                ends = ((left, groups - STAGES - 6), (left, bottom))
                scene.shapes.append(Line(ends, FAINT, dashed=True))
            text = f"stage {column.stage}"
            at = (max(left + 4, span.low), groups - STAGES)
            scene.texts.append(Text(at, text, PLAIN, "left"))
    for group in picture.groups:
        low, high = places.columns[group.first].low, places.columns[group.last].high
        scene.texts.append(Text((low, groups), group_text(group), PLAIN, "left", FAINT))
        scene.shapes.append(Line(((low, groups + 7), (high, groups + 7)), FAINT))
    if picture.left_out:
        both = zip(picture.columns, places.columns, strict=True)
        right = min(span.low for c, span in both if c.level == picture.left_out.level)
        left = max(span.high for span in places.columns if span.high < right)
        at = ((left + right) / 2, places.rows[0].line)
        scene.texts.append(Text(at, left_out_text(picture.left_out), color=FAINT))


def _before(picture: Picture, places: Places, column: Column) -> Span | None:
    """The level before a column's."""
    both = zip(picture.columns, places.columns, strict=True)
    return next((span for c, span in both if c.level == column.level - 1), None)


def _rows(scene: Scene, picture: Picture, places: Places) -> None:
    for i, (row, span) in enumerate(zip(picture.rows, places.rows, strict=True)):
        at = (MARGIN + 6, span.line)
        scene.texts.append(Text(at, row_text(row, picture), PLAIN, "left"))
        if row.alike_below:
            at = (MARGIN + 6, places.between(i))
            scene.texts.append(Text(at, alike_text(row), PLAIN, "left", FAINT))


# -- blocks ---------------------------------------------------------------------------------------


def _block(scene: Scene, block: Block, picture: Picture, places: Places) -> None:
    at, column = (block.rows[0], block.column), picture.columns[block.column]
    box, whole = places.boxes[at], places.wholes[at]
    colors = WHOLE if block.whole else PART
    if column.joins:
        _sign(scene, column, box, colors)
    else:
        if box != whole:
            _outline(scene, whole)
        _cuboid(scene, box, colors)
    if text := block_text(block, column, picture):
        below = whole.y + whole.height + 2 + (text.count("\n") + 1) * LABEL / 2
        scene.texts.append(Text((whole.center, below), text))
    if sum(c.level == column.level for c in picture.columns) > 1:
        top = whole.y - whole.oblique[1] - 2
        if detail := column_text(column):
            scene.texts.append(Text((whole.center, top - LABEL / 2), detail, color=FAINT))
            top -= LABEL
        if name := column_name(picture, block.column):
            scene.texts.append(Text((whole.center, top - LABEL / 2), name, PLAIN, bold=True))


def _cuboid(scene: Scene, box: Box, colors: Sequence[str]) -> None:
    front, top, right = _faces(box)
    scene.shapes += [
        Polygon(front, colors[0]),
        Polygon(top, colors[1]),
        Polygon(right, colors[2]),
    ]


def _outline(scene: Scene, box: Box) -> None:
    """The whole of which a rank holds a part."""
    for face in _faces(box):
        scene.shapes.append(Line((*face, face[0]), FAINT, 0.4, dashed=True))


def _faces(box: Box) -> tuple[tuple[Point, ...], tuple[Point, ...], tuple[Point, ...]]:
    """Front, top and right face."""
    x, y, right, bottom = box.x, box.y, box.x + box.channels, box.y + box.height
    dx, dy = box.oblique
    return (
        ((x, y), (right, y), (right, bottom), (x, bottom)),
        ((x, y), (right, y), (right + dx, y - dy), (x + dx, y - dy)),
        ((right, y), (right + dx, y - dy), (right + dx, bottom - dy), (right, bottom)),
    )


def _sign(scene: Scene, column: Column, box: Box, colors: Sequence[str]) -> None:
    """A plus or a times in a circle, or a bar."""
    if column.drawn == "bar":
        scene.shapes.append(Polygon(_faces(box)[0], colors[2]))
        return
    x, y, radius = box.center, box.middle, box.height / 2
    turns = [2 * pi * i / 32 for i in range(32)]
    circle = tuple((x + radius * cos(turn), y + radius * sin(turn)) for turn in turns)
    scene.shapes.append(Polygon(circle, colors[1]))
    arm = radius * 0.55
    for turn in (0.0, pi / 2):
        turn += pi / 4 if column.drawn == "times" else 0.0
        dx, dy = arm * cos(turn), arm * sin(turn)
        scene.shapes.append(Line(((x - dx, y - dy), (x + dx, y + dy)), INK, 1.0))


def _readings(scene: Scene, picture: Picture, places: Places) -> None:
    """What a rank's next layers read of its own: a kernel's cone, all of it, or by an arc."""
    blocks = {(row, block.column): block for block in picture.blocks for row in block.rows}
    kernels: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for reading in picture.readings:
        if not reading.skip and picture.columns[reading.column].kernel:
            for row in reading.rows:
                first = blocks[row, reading.source].rows[0]
                kernels[first, reading.source].append((row, reading.column))
    readers: defaultdict[int, list[Reading]] = defaultdict(list)
    for reading in picture.readings:
        readers[reading.source].append(reading)
    for (row, column), block in blocks.items():
        for reading in readers[column]:
            if row not in reading.rows:
                continue
            reader = picture.columns[reading.column]
            source = places.boxes[row, column]
            target = places.boxes[row, reading.column]
            if reading.skip:
                _arc(scene, reading, row, picture, places)
            elif picture.columns[column].joins or reader.joins or is_long(picture, reading):
                _flow(scene, reading, row, picture, places)
            elif reader.kernel:
                share = reader.kernel / block.shape[-1]
                cones = kernels[block.rows[0], column]
                number = cones.index((row, reading.column))
                _kernel(scene, source, target, share, number, len(cones))
            else:
                _fan(scene, source, target)


def _flow(scene: Scene, reading: Reading, row: int, picture: Picture, places: Places) -> None:
    """An arrow from block to block, in one of the two lanes where that is a long way."""
    source = places.boxes[row, reading.source]
    target = places.boxes[row, reading.column]
    start = _right(source)
    points = [start]
    if is_long(picture, reading):
        a, b = picture.columns[reading.source], picture.columns[reading.column]
        if (a.region, a.lane) == (b.region, b.lane) or b.lane == 0:
            points.append((places.columns[reading.column].low - GAP / 2, start[1]))
        else:
            points.append((places.columns[reading.source].high + GAP / 2, target.middle))
    points.append(_left(picture.columns[reading.column], target, points[-1]))
    scene.shapes += _path(points)


def _left(column: Column, box: Box, origin: Point) -> Point:
    """Where an arrow from the left ends at a block or sign."""
    if column.drawn == "bar":
        return box.x, min(max(origin[1], box.y + 4), box.y + box.height - 4)
    if column.joins:
        dx, dy = origin[0] - box.center, origin[1] - box.middle
        share = box.height / 2 / hypot(dx, dy)
        return box.center + share * dx, box.middle + share * dy
    return box.x, box.middle


def _right(box: Box) -> Point:
    """Where an arrow to the right starts at a block or sign."""
    return box.x + box.channels + box.oblique[0], box.middle - box.oblique[1]


def _path(points: Sequence[Point], color: str = INK, width: float = 0.7) -> list[Line]:
    """Straight lines from point to point, with a head at the end."""
    head = Line(tuple(points[-2:]), color, width, head=True)
    return [Line(tuple(points[:-1]), color, width), head] if len(points) > 2 else [head]


def _arc(scene: Scene, reading: Reading, row: int, picture: Picture, places: Places) -> None:
    """Over everything that the skip leaves aside."""
    source = places.boxes[row, reading.source]
    target = places.boxes[row, reading.column]
    reader = picture.columns[reading.column]
    top = places.arcs[row, reading]
    x, y = _right(source)
    if not picture.columns[reading.source].joins:
        x, y = x - source.width * OBLIQUE[0] / 2, y - source.height / 2 + source.oblique[1] / 2
    if picture.columns[reading.source].joins:
        x, y = source.center + source.channels / 2 * 0.7, source.middle - source.height / 2 * 0.7
    end_x, end_y = target.center, target.y - target.oblique[1]
    if not reader.joins:
        end_x, end_y = target.x + target.channels / 2 + target.oblique[0] / 2, end_y
        end_y += target.oblique[1] / 2
    radius = min(ARC - 1, (end_x - x) / 2)
    turn = [pi / 2 * i / 6 for i in range(7)]
    rise = [(x + radius * (1 - cos(t)), top + radius * (1 - sin(t))) for t in turn]
    fall = [(end_x - radius * (1 - sin(t)), top + radius * (1 - cos(t))) for t in turn]
    scene.shapes += _path([(x, y), *rise, *fall, (end_x, end_y)])


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


# -- communication --------------------------------------------------------------------------------


def _exchanges(scene: Scene, picture: Picture, places: Places) -> None:
    for exchange in picture.exchanges:
        if is_long(picture, exchange):
            _long_exchange(scene, exchange, picture, places)
        else:
            _exchange(scene, exchange, picture, places)
    for (_, space), labels in gap_labels(picture).items():
        _labels(scene, labels, places.between(space), picture, places)


def _exchange(scene: Scene, exchange: Exchange, picture: Picture, places: Places) -> None:
    """Arrows between columns side by side."""
    for arrow in sorted(exchange.arrows, key=lambda arrow: arrow.source):
        start = _leaves(exchange, arrow.source, places)
        end = _enters(exchange, arrow, picture, places)
        scene.shapes += _arrow(arrow, [start, end])
    if not exchange.arrows:
        gap = _middle(exchange, places)
        _to_others(scene, exchange, picture, places, gap, gap)


def _middle(exchange: Exchange, places: Places) -> float:
    return (places.columns[exchange.source].high + places.columns[exchange.column].low) / 2


def _to_others(scene: Scene, exchange: Exchange, picture: Picture, places: Places,
               left: float, right: float) -> None:  # fmt: skip
    """Where every peer is left out: out to them, and back."""
    for row in exchange.rows:
        y = places.between(outside(picture, row))
        if (row, exchange.source) in places.boxes:
            start = _leaves(exchange, row, places)
            scene.shapes.append(Line((start, (left, y)), EXPOSED, 1.2))
        if (row, exchange.column) in places.boxes:
            box = places.boxes[row, exchange.column]
            end = (box.x, box.middle + box.height / 8)
            scene.shapes.append(Line(((right, y), end), EXPOSED, 1.2, head=True))


def _leaves(exchange: Exchange, row: int, places: Places) -> Point:
    return _right(places.boxes[row, exchange.source])


def _enters(exchange: Exchange, arrow: Arrow, picture: Picture, places: Places) -> Point:
    box = places.boxes[arrow.target, exchange.column]
    y = box.middle + box.height / 8
    if picture.columns[exchange.column].drawn == "bar":  # as far down as the lane it comes from
        offset = places.boxes[arrow.source, exchange.source].middle
        y = places.rows[arrow.target].line + offset - places.rows[arrow.source].line + 4
        y = min(max(y, box.y + 4), box.y + box.height - 4)
    return box.x, y


def _arrow(arrow: Arrow, points: list[Point]) -> list[Line]:
    """From sender to receiver of the forward, or of the backward where that alone is sent."""
    return _path(points if arrow.forward else points[::-1], EXPOSED, 1.2)


def _long_exchange(scene: Scene, exchange: Exchange, picture: Picture, places: Places) -> None:
    """Arrows over other columns run between the rows."""
    labelled = is_labelled_on_arrow(exchange)
    left = places.columns[exchange.source].high + GAP / 2
    right = places.columns[exchange.column].low - GAP / 2
    named = set()
    for arrow in exchange.arrows:
        run = (exchange, arrow if labelled else None, arrow.space)
        y = places.tracks[run]
        start = _leaves(exchange, arrow.source, places)
        if not picture.columns[exchange.source].joins:  # beside what its own rank reads
            start = (start[0], start[1] + 5)
        end = _enters(exchange, arrow, picture, places)
        bends = ((left, start[1]), (left, y), (right, y), (right, end[1]))
        scene.shapes += _arrow(arrow, [start, *bends, end])
        if run not in named:
            named.add(run)
            text = arrow_text(arrow) if labelled else exchange_text(exchange)
            if exchange.parameter:
                text = f"{exchange.parameter}: {text}"
            scene.texts.append(Text(((left + right) / 2, y), text, color=EXPOSED, boxed=True))
    if not exchange.arrows:
        _to_others(scene, exchange, picture, places, left, right)


def _labels(
    scene: Scene, labels: list[GapLabel], middle: float, picture: Picture, places: Places
) -> None:
    """Labels on arrows that cross the same space between rows, one above the other."""
    for i, label in enumerate(labels):
        exchange, arrow = label.ends[len(label.ends) // 2]
        y = middle + (i - (len(labels) - 1) / 2) * 1.6 * LABEL
        x = _middle(exchange, places)
        if arrow:
            x1, y1 = _leaves(exchange, arrow.source, places)
            x2, y2 = _enters(exchange, arrow, picture, places)
            x = x1 + (x2 - x1) * (y - y1) / (y2 - y1)
        scene.texts.append(Text((x, y), label.text, color=EXPOSED, boxed=True))


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
    _cuboid(scene, Box(x, y - 4, 8, 9, 16), PART)
    lines = [f"what a rank holds of a layer's output: {_shape_legend(picture)}"]
    if any(block.bands for block in picture.blocks):
        y += 18
        whole = Box(x, y - 3, 8, 10, 16)
        _outline(scene, whole)
        _cuboid(scene, replace(whole, height=4), PART)
        names = sorted({band_name(band) for block in picture.blocks for band in block.bands})
        lines.append(f"the same, where it is some {' or '.join(names)} of the whole (dashed)")
    if any(block.whole for block in picture.blocks):
        y += 18
        _cuboid(scene, Box(x, y - 4, 8, 9, 16), WHOLE)
        lines.append("what each of several ranks computes whole")
    if any(column.kernel for column in picture.columns):
        y += 18
        apex = (x + 22, y)
        face = ((x, y - 3), (x + 4, y - 6), (x + 4, y + 3), (x, y + 6))
        scene.shapes.append(Line((*face, face[0])))
        scene.shapes += [Line((corner, apex), FAINT, 0.4, dashed=True) for corner in face]
        lines.append("a kernel, and the one value that it gives")
    if any(reading.skip for reading in picture.readings):
        y += 18
        bend = [(x + 11 - 11 * cos(pi * i / 12), y + 4 - 9 * sin(pi * i / 12)) for i in range(13)]
        scene.shapes += _path([*bend[:-1], (bend[-1][0], bend[-1][1] + 2)])
        lines.append("what is read later, too, as a residual")
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


def _shape_legend(picture: Picture) -> str:
    axes = {column.axes for column in picture.columns}
    shapes = ["tokens × channels"] * (SEQUENCE_AXES in axes)
    shapes += ["height × width × channels"] * (IMAGE_AXES in axes or not shapes)
    return " or ".join(shapes) + ", or features" * (("channel",) in axes)


def _arrow_legend(picture: Picture) -> str:
    arrows = [arrow for exchange in picture.exchanges for arrow in exchange.arrows]
    text = "activations that one rank sends another, bytes in a step's forward"
    if any(group.others for group in picture.groups):
        text += "; of one block where several are drawn once"
    if any(not arrow.forward for arrow in arrows):
        text += "; back: gradients alone"
    elif all(arrow.backward == arrow.forward for arrow in arrows):
        text += "; the backward returns as many"
    merged = any(len(x.ends) > 1 for labels in gap_labels(picture).values() for x in labels)
    if merged or not all(map(is_labelled_on_arrow, picture.exchanges)):
        text += "; N × bytes: so many on each of N edges"
    return text
