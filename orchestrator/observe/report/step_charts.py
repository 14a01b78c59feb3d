"""Charts of one item's step: timelines, memory, edges, ops predicted against measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    Column,
    ColumnDataSource,
    FixedTicker,
    LogColorMapper,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations.legends import ColorBar
from bokeh.palettes import Cividis256
from bokeh.plotting import figure

from orchestrator.observe.palette import LOADING, OP_COLORS, SHARE_NAMES
from orchestrator.observe.report.description import RankBytes, ReportItem, Step
from orchestrator.observe.report.drawing import DASHES, chart, legend_above, tooltips, unit
from orchestrator.observe.report.overview import diagonal
from orchestrator.observe.timeline import Interval
from orchestrator.program.ledger import GRADIENT, edges
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    COMPUTE,
    EXCHANGE_B,
    EXCHANGE_F,
    LANE_OF,
    RECV_B,
    RECV_F,
    REDUCE_SCATTER,
    SEND_B,
    SEND_F,
    STEP,
    B,
    F,
    I,
    Program,
    W,
)

MOST_OPS = 50_000
"""Ops of a step that are drawn; of a larger one the first ranks are."""

_MOST_IN_LEGEND = 8

GROUPS = {
    "forward": (F,),
    "backward": (B,),
    "input gradients": (I,),
    "weight gradients": (W,),
    "update": (STEP,),
    "exchange": (EXCHANGE_F, EXCHANGE_B),
    "send": (SEND_F, SEND_B),
    "receive": (RECV_F, RECV_B),
    "collective": (ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER),
}
"""Kinds of op by their name in a legend."""

_TRANSFERS = ("exchange", "send", "receive", "collective")
_ROW_OF = {
    kind: label if label in _TRANSFERS else COMPUTE
    for label, kinds in GROUPS.items() for kind in kinds
}  # fmt: skip
_RANK_COLORS = Cividis256[110:226]  # neither end, which white or black paper would swallow


def timelines(item: ReportItem) -> Column:
    """Every op of every rank, measured over predicted, and the memory: one time axis for all.

    A rank is a band: its computation, below it a thinner row for each kind of transfer it has.
    """
    name, per_second = unit(item.best["step_time_s"])
    last = max(max(step.times.finish.values()) for step in item.steps) * per_second
    time = Range1d(start=0, end=last, bounds=(0, last))
    charts = [_timeline(step, name, per_second, time) for step in item.steps]
    if item.memory:
        charts.append(_memory(item, name, per_second, time))
    return column(*charts, sizing_mode="stretch_width")


def _timeline(step: Step, unit_name: str, per_second: float, time: Range1d) -> figure:
    program = step.program
    shown = _drawn_ranks(program)
    height = min(64, max(14, 640 // shown))
    some = "" if shown == len(program.ranks) else f", first {shown} of {len(program.ranks)} ranks"
    made = chart(
        f"time in the step, {unit_name}", "rank", 120 + height * shown,
        x_range=time, y_range=Range1d(start=shown - 0.4, end=-0.6), title=step.title + some,
        tools="xpan,xbox_zoom,xzoom_in,xzoom_out,reset", toolbar_location="above",
        active_drag="xbox_zoom",
    )  # fmt: skip
    made.toolbar.logo = None
    made.ygrid.grid_line_color = None
    every = max(1, -(-16 // height))
    made.yaxis.ticker = FixedTicker(ticks=list(range(0, shown, every)))
    rows = _rows(program)
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for rank in range(shown):
        for i in program.order[rank]:
            by_kind[program.columns.kind[i]].append(i)
    for label, kinds in GROUPS.items():
        ids = [i for kind in kinds for i in by_kind[kind]]
        if not ids:
            continue
        offset, thickness = rows[_ROW_OF[kinds[0]]]
        spans = [(step.times.start[i], step.times.end[i]) for i in ids]
        source = ColumnDataSource(_bars(program, ids, spans, per_second, offset))
        made.hbar(
            y="y", left="left", right="right", height=thickness, source=source,
            color=OP_COLORS[kinds[0]], line_color=None, legend_label=label,
        )  # fmt: skip
    loading = step.times.loading
    if ids := [i for i in loading if program.columns.rank[i] < shown]:
        offset, thickness = rows[COMPUTE]
        bars = _bars(program, ids, [loading[i] for i in ids], per_second, offset)
        source = ColumnDataSource({**bars, "op": [f"data of {op}" for op in bars["op"]]})
        made.hbar(
            y="y", left="left", right="right", height=thickness, source=source, color=LOADING,
            line_color=None, legend_label=SHARE_NAMES["loading_time_s"],
        )  # fmt: skip
    legend_above(made)
    tooltips(made, [
        ("", "@op on rank @rank"), ("layers", "@layers"), ("takes", f"@takes{{0.000}} {unit_name}"),
        ("starts", f"@left{{0.000}} {unit_name}"),
    ])  # fmt: skip
    return made


def _drawn_ranks(program: Program) -> int:
    ends = accumulate(map(len, program.order))
    return max(1, sum(end <= MOST_OPS for end in ends))


def _rows(program: Program) -> dict[str, tuple[float, float]]:
    """Where each row lies below the middle of a rank's band, and how thick it is."""
    there = {_ROW_OF[kind] for kind in set(program.columns.kind)}
    used = [COMPUTE, *(row for row in _TRANSFERS if row in there)]
    weights = [4 if row == COMPUTE else 1 for row in used]
    each = 0.88 / sum(weights)
    ends = list(accumulate(w * each for w in weights))
    return {
        row: (end - w * each / 2 - 0.44, w * each * (1.0 if row == COMPUTE else 0.8))
        for row, end, w in zip(used, ends, weights, strict=True)
    }


def _bars(
    program: Program,
    ids: Sequence[int],
    spans: Sequence[Interval],
    per_second: float,
    offset: float,
) -> dict[str, Sequence[object] | np.ndarray]:
    """A row for each op and its span in seconds."""
    left, right = np.array(spans).T * per_second
    ranks = np.array([program.columns.rank[i] for i in ids])
    return {
        "left": left.astype(np.float32), "right": right.astype(np.float32),
        "takes": (right - left).astype(np.float32), "rank": ranks.astype(np.int32),
        "y": (ranks + offset).astype(np.float32),
        "op": [str(program.op(i)) for i in ids],
        "layers": [_layers(program, i) for i in ids],
    }  # fmt: skip


def _layers(program: Program, i: int) -> str:
    segment = program.segment_of(i)
    if LANE_OF[program.columns.kind[i]] != COMPUTE:
        return f"before {program.reader(i)}"
    last = segment.layers[-1].name
    return segment.reader if last == segment.reader else f"{segment.reader}..{last}"


def _memory(item: ReportItem, unit_name: str, per_second: float, time: Range1d) -> figure:
    step = item.steps[-1]
    made = chart(
        f"time in the step, {unit_name}", "memory, GiB", 300, x_range=time,
        title="Memory by rank (predicted)",
    )  # fmt: skip
    alike: defaultdict[tuple[int, ...], list[RankBytes]] = defaultdict(list)
    for memory in item.memory:
        alike[tuple(memory.bytes)].append(memory)
    for place, (used, same) in enumerate(alike.items()):
        first = same[0].rank
        ranks = ranges([memory.rank for memory in same])
        x = [t * per_second for t in _posting_times(step, same[0])]
        y = [n / 2**30 for n in used]
        source = ColumnDataSource({
            "x": np.array([*x, step.times.finish[first] * per_second], np.float32),
            "y": np.array([*y, y[-1]], np.float32),
            "ranks": [ranks] * (len(x) + 1),
        })  # fmt: skip
        made.step(
            "x", "y", source=source, mode="after", line_width=2,
            line_color=_RANK_COLORS[place * (len(_RANK_COLORS) - 1) // max(1, len(alike) - 1)],
            line_dash=DASHES[place % len(DASHES)],
            legend_label=f"rank {ranks}",
        )  # fmt: skip
    peak = max(max(memory.bytes) for memory in item.memory)
    made.y_range = Range1d(start=0, end=peak / 2**30 * 1.1)
    if item.room_bytes is not None and item.room_bytes < 2 * peak:
        room = item.room_bytes / 2**30
        made.line(
            [time.start, time.end], [room, room], line_color="#8a8a8a", line_dash="dashed",
            line_width=2, legend_label="room on the device",
        )  # fmt: skip
        made.y_range = Range1d(start=0, end=max(peak / 2**30, room) * 1.1)
    if len(alike) <= _MOST_IN_LEGEND:
        legend_above(made)
    else:
        made.legend.visible = False
    tooltips(made, [("rank", "@ranks"), ("memory", "@y{0.000} GiB")])
    return made


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as text, runs of three and more shortened: ``0-3, 8, 9``."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _posting_times(step: Step, memory: RankBytes) -> list[float]:
    """When each op was posted: a transfer with the computation before it, which it runs beside."""
    kinds, start = step.program.columns.kind, step.times.start
    computing = (start[i] if LANE_OF[kinds[i]] == COMPUTE else 0.0 for i in memory.ops)
    return list(accumulate(computing, max))


def matrix(item: ReportItem) -> figure:
    """Bytes of a step from rank to rank."""
    program = item.steps[-1].program
    found = edges(program)
    count = max([len(program.ranks), *(e.to_rank + 1 for e in found)])
    sums: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for edge, size in found.items():
        sums[edge.from_rank, edge.to_rank][edge.direction] += size
    pairs = sorted(sums)
    mega = [sum(sums[pair].values()) / 1e6 for pair in pairs]
    source = ColumnDataSource({
        "x": [b for _, b in pairs], "y": [a for a, _ in pairs], "MB": mega,
        "told": [f"{n:,.3g}" for n in mega],
        **{
            direction: [sums[pair][direction] / 1e6 for pair in pairs]
            for direction in ("forward", "backward", GRADIENT)
        },
    })  # fmt: skip
    made = chart(
        "to rank", "from rank", 420, x_range=(-0.5, count - 0.5), y_range=(count - 0.5, -0.5),
        max_width=560,
    )  # fmt: skip
    every = max(1, -(-count // 16))
    made.xaxis.ticker = made.yaxis.ticker = FixedTicker(ticks=list(range(0, count, every)))
    made.grid.grid_line_color = None
    low, high = min(mega, default=1.0), max(mega, default=1.0)
    mapper = LogColorMapper(palette=Cividis256, low=low / 1.5, high=high * 1.5)
    made.rect(
        "x", "y", width=0.96, height=0.96, source=source, line_color=None,
        fill_color={"field": "MB", "transform": mapper},
    )  # fmt: skip
    if count <= 8:
        middle = (low * high) ** 0.5
        source.data["ink"] = ["#000000" if n > middle or low == high else "#ffffff" for n in mega]
        made.text(
            "x", "y", text="told", source=source, text_color="ink", text_align="center",
            text_baseline="middle", text_font_size="12px",
        )  # fmt: skip
    bar = ColorBar(
        color_mapper=mapper, title="MB a step", width=10, background_fill_alpha=0,
        formatter=NumeralTickFormatter(format="0,0.[00]"), title_text_font_style="normal",
        major_label_text_font_size="12px",
    )  # fmt: skip
    made.add_layout(bar, "right")
    tooltips(made, [
        ("", "rank @y to rank @x"), ("in all", "@MB{0,0.000} MB"),
        ("forward", "@forward{0,0.000} MB"), ("backward", "@backward{0,0.000} MB"),
        ("gradient sums", "@gradient{0,0.000} MB"),
    ])  # fmt: skip
    return made


def ops_scatter(item: ReportItem) -> figure:
    """A mark an op: predicted over measured seconds, beside the diagonal of no error."""
    made = chart(
        "measured, milliseconds", "predicted, milliseconds", 420,
        x_axis_type="log", y_axis_type="log",
    )  # fmt: skip
    pairs = [p for p in item.pairs if p.measured_s > 0 and p.predicted_s > 0]
    diagonal(made, [t * 1e3 for p in pairs for t in (p.measured_s, p.predicted_s)])
    markers = (
        "circle", "square", "diamond", "hex", "plus", "star", "triangle", "inverted_triangle", "x",
    )  # fmt: skip
    for (label, kinds), marker in zip(GROUPS.items(), markers, strict=True):
        some = [p for p in pairs if p.kind in kinds]
        if not some:
            continue
        source = ColumnDataSource({
            "x": [p.measured_s * 1e3 for p in some], "y": [p.predicted_s * 1e3 for p in some],
            "op": [p.op for p in some], "rank": [p.rank for p in some],
        })  # fmt: skip
        made.scatter(
            "x", "y", source=source, size=8, marker=marker, color=OP_COLORS[kinds[0]],
            fill_alpha=0.6, legend_label=label,
        )  # fmt: skip
    legend_above(made)
    tooltips(made, [
        ("", "@op on rank @rank"), ("measured", "@x{0,0.000} ms"), ("predicted", "@y{0,0.000} ms"),
    ])  # fmt: skip
    return made
