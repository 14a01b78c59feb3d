"""What all charts of the page share: axes with titles and units, no colours of their own.

The colours of text, axes and grid come from the page's style sheet, through the CSS variables that
Bokeh reads (``--bk-grid-line-color`` and its like), so they follow the light and the dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    FixedTicker,
    HoverTool,
    LogAxis,
    NumeralTickFormatter,
)
from bokeh.models.annotations.labels import Label
from bokeh.models.annotations.legends import Legend
from bokeh.plotting import figure

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "plus", "x")
DASHES = ("solid", "dashed", "dotted", "dotdash")


def chart(x_title: str, y_title: str, height: int, **options: Any) -> figure:
    """An empty chart as wide as the page, with a tooltip tool and nothing else to press."""
    settings: dict[str, Any] = {"tools": "", "toolbar_location": None, **options}
    made = figure(
        height=height, sizing_mode="stretch_width", min_width=200,
        x_axis_label=x_title, y_axis_label=y_title, **settings,
    )  # fmt: skip
    made.xaxis.minor_tick_line_color = made.yaxis.minor_tick_line_color = None
    made.axis.major_label_text_font_size = made.axis.axis_label_text_font_size = "12px"
    made.axis.axis_label_text_font_style = "normal"
    for axis in made.select({"type": LogAxis}):
        axis.update(formatter=NumeralTickFormatter(format="0,0.[0000]"))
    return made


def tooltips(made: figure, rows: Sequence[tuple[str, str]], renderers: Any = "auto") -> None:
    """What is told of the mark under the pointer: (label, Bokeh's format) a row."""
    made.add_tools(HoverTool(tooltips=list(rows), renderers=renderers))


def label(made: figure, x: float, y: float, text: str) -> None:
    """Text from its lower left corner on."""
    made.add_layout(Label(x=x, y=y, text=text, text_font_size="13px", text_baseline="bottom"))


def legend_above(made: figure) -> None:
    """The legend over the chart; a press on an entry hides it. The page's script folds it."""
    legend: Legend = made.legend[0]
    legend.update(
        ncols=len(legend.items), orientation="horizontal", location="left", click_policy="hide",
        label_text_font_size="12px", border_line_color=None, background_fill_alpha=0, padding=0,
        margin=4, spacing=10,
    )  # fmt: skip
    made.add_layout(legend, "above")


def ticks(positions: Sequence[float], labels: Sequence[str]) -> tuple[FixedTicker, dict[Any, Any]]:
    """A ticker and its labels."""
    return FixedTicker(ticks=list(positions)), dict(zip(positions, labels, strict=True))


def unit(seconds: float) -> tuple[str, float]:
    """A unit in which so many seconds read well, and how many of it a second has."""
    if seconds >= 1:
        return "s", 1.0
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
