"""What was published, what is predicted, and how much the prediction knew of it.

A row's mark says what its error is worth:

    fit        a constant was chosen by it
    in sight   a choice in the model, or in how the table is set up, was made with it known
    held out   neither: the only rows that tell how far a prediction can be trusted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

MARKS = ("fit", "in sight", "held out")
FILE = Path(__file__).with_name("published.yaml")


def read_published(text: str | None = None) -> dict[str, dict[str, Any]]:
    """The tables of ``published.yaml``, or of a text like it.

    Raises:
        ValueError: a table says not where it is from or why its marks are so, or a row has none.
    """
    tables: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text() if text is None else text)
    for name, table in tables.items():
        for key in ("source", "checked", "marks", "rows"):
            if not table.get(key):
                raise ValueError(f"table {name} has no {key}")
        for row in table["rows"]:
            if row.get("mark") not in MARKS:
                raise ValueError(f"table {name}, row {row}: mark is one of {', '.join(MARKS)}")
    return tables


@dataclass(frozen=True)
class Row:
    """A published figure beside the predicted one.

    Args:
        what: names it.
        published, predicted: as they are shown, with their unit.
        error: (predicted - published) / published; None where nothing but a bound was published.
        mark: one of ``MARKS``.
    """

    what: str
    published: str
    predicted: str
    error: float | None
    mark: str


def figure(what: str, published: float, predicted: float, unit: str, mark: str) -> Row:
    """A row of two numbers."""
    return Row(
        what, f"{published:.4g} {unit}", f"{predicted:.4g} {unit}", predicted / published - 1, mark
    )


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table as Markdown, and what its errors are by mark."""
    yield from ("| what | published | predicted | error | mark |", "|---|---|---|---|---|")
    for row in rows:
        error = "" if row.error is None else _signed(row.error)
        yield f"| {row.what} | {row.published} | {row.predicted} | {error} | {row.mark} |"
    yield ""
    for mark, errors in _by_mark(rows):
        if errors:
            count = f"{len(errors)} row{'s' * (len(errors) > 1)}"
            average, worst, sign = _told(errors)
            yield f"* {mark}: {count}, mean {average}, worst {worst}, sign {sign}"


def over_all(tables: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Every table's errors by mark, and those of all tables, as Markdown."""
    yield from ("| table | mark | rows | mean | worst | sign |", "|---|---|---|---|---|---|")
    everything = [row for rows in tables.values() for row in rows]
    for name, rows in (*tables.items(), ("all", everything)):
        for mark, errors in _by_mark(rows):
            if errors:
                yield f"| {name} | {mark} | {len(errors)} | {' | '.join(_told(errors))} |"
            elif name == "all":
                yield f"| {name} | {mark} | none | | | |"


def _by_mark(rows: Sequence[Row]) -> Iterator[tuple[str, list[float]]]:
    for mark in MARKS:
        yield mark, [row.error for row in rows if row.mark == mark and row.error is not None]


def _told(errors: Sequence[float]) -> tuple[str, str, str]:
    """Mean of absolute errors, worst error, mean with signs: as large as the first where all rows
    err to one side."""
    return (
        f"{mean(map(abs, errors)):.1%}",
        _signed(max(errors, key=abs)),
        _signed(mean(errors)),
    )


def _signed(error: float) -> str:
    shown = f"{error:+.1%}"
    return shown if shown.strip("+-") != "0.0%" else "0.0%"
