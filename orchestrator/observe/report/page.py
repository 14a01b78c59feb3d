"""Puts a report's text and charts into one HTML file; nothing in it is fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jinja2
from bokeh.embed import json_item
from bokeh.models.ui import UIElement
from bokeh.resources import Resources
from markupsafe import Markup

from orchestrator import files
from orchestrator.errors import InputError
from orchestrator.observe.palette import SHARE_COLORS, SHARE_NAMES
from orchestrator.observe.report import overview, step_charts
from orchestrator.observe.report.description import Report

_HERE = resources.files("orchestrator.observe.report")


def render(report: Report) -> str:
    """The page as text."""
    loader = jinja2.FunctionLoader(lambda name: (_HERE / name).read_text(encoding="utf-8"))
    # What comes from files is escaped; a name that the template misspells is an error.
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"duration": duration, "size": size}
    library = Resources(mode="inline", components=["bokeh"], log_level="error").js_raw
    return environment.get_template("page.html.jinja").render(
        report=report,
        parts=SHARE_NAMES,
        colors=SHARE_COLORS,
        charts=_for_script(dict(_charts(report))),
        library=Markup("\n".join(library)),
        style=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
    )


def write(path: Path, report: Report) -> None:
    """Write the page, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    text = render(report)
    try:
        files.write_text(path, text)
    except OSError as error:
        raise InputError(
            f"cannot write the report to {path}: {error.strerror or error}",
            "--html",
            "a file in a folder where you may write, such as --html report.html",
        ) from error


def _charts(report: Report) -> Iterator[tuple[str, UIElement]]:
    """Every chart by the name under which the template has a place for it."""
    yield "shares", overview.shares(report.items)
    if sum(item.error_ratio is not None for item in report.items) > 1:
        yield "steps", overview.step_times(report.items)
    if report.batch:
        yield "batch", overview.batch_sweep(report.batch)
    if report.bandwidth:
        yield "bandwidth", overview.bandwidth_sweep(report.bandwidth)
    for i, item in enumerate(report.items):
        if item.steps:
            yield f"timeline-{i}", step_charts.timelines(item)
            if item.best["bytes_sent"]:
                yield f"edges-{i}", step_charts.matrix(item)
        if item.pairs:
            yield f"ops-{i}", step_charts.ops_scatter(item)


def _for_script(charts: dict[str, UIElement]) -> Markup:
    """JSON that may stand inside a script element: HTML knows no escapes there, JSON does."""
    text = json.dumps({name: json_item(chart) for name, chart in charts.items()})
    return Markup(text.replace("<", "\\u003c"))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def duration(seconds: float) -> str:
    """Seconds to three digits, in a unit that fits."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def size(count: float) -> str:
    """Bytes to three digits, in binary units as memory is sold."""
    for name, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.3g} {name}"
    return f"{count:.0f} B"
