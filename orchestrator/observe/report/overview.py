"""Charts of all items: where the time goes, predicted against measured, what flips the order."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.models import ColumnDataSource, DataRange1d
from bokeh.plotting import figure

from orchestrator.observe.palette import ITEM_COLORS, SHARE_COLORS, SHARE_NAMES
from orchestrator.observe.report.description import Curve, ReportItem
from orchestrator.observe.report.drawing import (
    DASHES,
    MARKERS,
    chart,
    label,
    legend_above,
    ticks,
    tooltips,
)


def shares(items: Sequence[ReportItem]) -> figure:
    """A bar an item and source: milliseconds an image, by what they went into.

    The mean over the ranks, so a bar is as long as the step.
    """
    rows = [(item, source, timing) for item in items for source, timing in item.sources]
    made = chart(
        "ms an image, mean over ranks", "", 90 + 58 * len(rows),
        x_range=DataRange1d(start=0), y_range=(len(rows) - 0.3, -0.75),
    )  # fmt: skip
    made.yaxis.visible = False
    made.ygrid.grid_line_color = None
    starts = [0.0] * len(rows)
    for key, color in SHARE_COLORS.items():
        lengths = [max(0.0, timing[key]) / item.batch * 1e3 for item, _, timing in rows]
        ends = [a + b for a, b in zip(starts, lengths, strict=True)]
        source = ColumnDataSource({
            "y": list(range(len(rows))), "left": starts, "right": ends, "ms": lengths,
            "item": [f"{item.name} ({source})" for item, source, _ in rows],
            "part": [SHARE_NAMES[key]] * len(rows),
            "share": [max(0.0, timing[key]) / timing["step_time_s"] for _, _, timing in rows],
        })  # fmt: skip
        made.hbar(
            y="y", left="left", right="right", height=0.4, color=color, source=source,
            line_color=None, legend_label=SHARE_NAMES[key],
        )  # fmt: skip
        starts = ends
    for i, (item, name, _) in enumerate(rows):
        label(made, 0, i - 0.27, f"{item.name}, {name}")
    legend_above(made)
    tooltips(
        made, [("", "@item"), ("", "@part: @ms{0.000} ms an image"), ("share", "@share{0.0%}")]
    )
    return made


def step_times(items: Sequence[ReportItem]) -> figure:
    """A mark a run: predicted over measured step time, beside the diagonal of no error."""
    pairs = [
        (place, item.name, item.measured["step_time_s"], item.predicted["step_time_s"])
        for place, item in enumerate(items)
        if item.measured is not None and item.predicted is not None
    ]
    made = chart(
        "measured, seconds a step", "predicted, seconds a step", 380,
        x_axis_type="log", y_axis_type="log",
    )  # fmt: skip
    diagonal(made, [t for _, _, a, b in pairs for t in (a, b)])
    for place, name, measured, predicted in pairs:
        source = ColumnDataSource({"x": [measured], "y": [predicted], "name": [name]})
        _marks(made, source, place, name)
    tooltips(made, [("", "@name"), ("measured", "@x{0.0000} s"), ("predicted", "@y{0.0000} s")])
    legend_above(made)
    return made


def diagonal(made: figure, values: Sequence[float]) -> None:
    """The line on which prediction and measurement are equal, over all the values."""
    ends = [min(values) / 1.5, max(values) * 1.5]
    made.line(ends, ends, line_color="#8a8a8a", line_dash="dashed", legend_label="equal")


def batch_sweep(curves: Sequence[Curve]) -> figure:
    """Images a second over the batch."""
    return _sweep(curves, "images of a step (batch)", "log")


def bandwidth_sweep(curves: Sequence[Curve]) -> figure:
    """Images a second over multiples of every link's bandwidth."""
    powers = range(-6, 7, 2)
    names = [f"1/{2**-p}" if p < 0 else str(2**p) for p in powers]
    made = _sweep(curves, "times the cluster's bandwidth", "log")
    made.xaxis.ticker, made.xaxis.major_label_overrides = ticks([2.0**p for p in powers], names)
    return made


def _sweep(curves: Sequence[Curve], x_title: str, x_type: str) -> figure:
    made = chart(x_title, "images a second (simulated)", 380, x_axis_type=x_type, y_axis_type="log")
    for curve in curves:
        i = curve.place
        source = ColumnDataSource({
            "x": list(curve.x), "y": list(curve.images_per_s), "name": [curve.name] * len(curve.x),
        })  # fmt: skip
        made.line(
            "x", "y", source=source, line_width=2, line_color=ITEM_COLORS[i % len(ITEM_COLORS)],
            line_dash=DASHES[i // len(ITEM_COLORS) % len(DASHES)], legend_label=curve.name,
        )  # fmt: skip
        _marks(made, source, i, curve.name)
    tooltips(made, [("", "@name"), (x_title, "@x{0,0.[000]}"), ("images a second", "@y{0,0.0}")])
    legend_above(made)
    return made


def _marks(made: figure, source: ColumnDataSource, i: int, name: str) -> None:
    """An item's marks: the same colour and shape in every chart."""
    made.scatter(
        "x", "y", source=source, size=8, marker=MARKERS[i % len(MARKERS)],
        color=ITEM_COLORS[i % len(ITEM_COLORS)], legend_label=name,
    )  # fmt: skip
