"""The comparison in a terminal: a table with bars, as wide as the terminal allows."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from orchestrator.cli.figures import footnote, mark, seconds, three_digits
from orchestrator.cli.terminal import console
from orchestrator.observe.palette import SHARE_COLORS, SHARE_NAMES

# Told apart without colours too, on paper or in a log.
_LETTERS = {
    "compute_time_s": "█",
    "exposed_communication_time_s": "▓",
    "wait_time_s": "▒",
    "bubble_time_s": "░",
    "loading_time_s": "▚",
    "other_time_s": "·",
}
_OTHER_COLUMNS = 40  # widths of the source, the times and the spaces beside a name and a bar
_SHORTEST_BAR, _WIDEST_BAR = 12, 60


def show(found: dict[str, Any]) -> None:
    """Print what :func:`orchestrator.simulate.compare.compare` has found."""
    screen = console()
    longest = max(len("plan or run"), *(len(item["name"]) for item in found["items"]))
    room = screen.width - _OTHER_COLUMNS - longest
    screen.print(_table(found, min(_WIDEST_BAR, max(_SHORTEST_BAR, room))))
    assumed = dict.fromkeys(key for item in found["items"] for key in item["assumed"])
    if assumed:
        screen.print(footnote(found["cluster"], [*assumed]), markup=False)
    screen.print(
        "  ".join(f"[{SHARE_COLORS[k]}]{s}[/] {SHARE_NAMES[k]}" for k, s in _LETTERS.items())
    )
    networks = found["networks"]
    if len(networks) > 1:
        screen.print()
        for line in found["because"]:
            screen.print(line, markup=False)
    for network in networks:
        if network["winner"] is None:
            continue
        among = f" among plans of {escape(network['model'])}" if len(networks) > 1 else ""
        screen.print(f"\n[bold]{escape(network['winner'])}[/] wins{among}")
        for line in network["because"]:
            screen.print(f"  {line}", markup=False)
    if agreement := agreement_of(found):
        screen.print(agreement, markup=False)
    for item in found["items"]:
        if item.get("ops"):
            screen.print()
            screen.print(_op_table(item))


def agreement_of(found: dict[str, Any]) -> str:
    """How well what was measured had been predicted, in a sentence; "" if nothing was."""
    if found["mean_absolute_error_ratio"] is None:
        return ""
    tau = found["kendall_tau"]
    return (
        f"step time predicted with a mean error of {found['mean_absolute_error_ratio']:.1%}, "
        f"at worst {found['worst_error_ratio']:.1%}"
        + (f"; order right to Kendall's tau {tau:.2f}" if tau is not None else "")
    )


def _table(found: dict[str, Any], bar_width: int) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("plan or run", overflow="fold")
    table.add_column("")
    for name in ("step", "images/s", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("time goes to", no_wrap=True, min_width=bar_width)
    for item in found["items"]:
        name = escape(item["name"])
        for source in ("measured", "predicted"):
            row = item[source]
            if row is None:
                continue
            error = item["error_ratio"]
            shown = f"{error:+.1%}" if source == "predicted" and error is not None else ""
            predicted = source == "predicted"
            before = mark(item["assumed"]) if predicted else ""
            rate = three_digits(row["images_per_s"]) if predicted else f"{row['images_per_s']:,.1f}"
            table.add_row(
                name, f"[dim]{source}[/]", before + seconds(row["step_time_s"]), before + rate,
                shown, _bar(row, bar_width),
            )  # fmt: skip
            name = ""
    return table


def _bar(row: dict[str, Any], width: int) -> str:
    """Shares of the step as a bar."""
    text, done, total = "", 0.0, 0
    for key, letter in _LETTERS.items():
        done += max(0.0, row[key]) / row["step_time_s"]
        cells = round(done * width) - total
        total += cells
        if cells > 0:
            text += f"[{SHARE_COLORS[key]}]{letter * cells}[/]"
    return text


def _op_table(item: dict[str, Any]) -> Table:
    table = Table(
        "", box=None, header_style="dim", title_justify="left", pad_edge=False,
        title=f"{escape(item['name'])}: a step, summed over all ranks",
    )  # fmt: skip
    for name in ("predicted", "measured", "error"):
        table.add_column(name, justify="right")
    for row in item["ops"]:
        error = row["error_ratio"]
        table.add_row(
            row["kind"], seconds(row["predicted_s"]), seconds(row["measured_s"]),
            "" if error is None else f"{error:+.1%}",
        )  # fmt: skip
    for row in item["worst_layers"]:
        table.add_row(
            escape(f"{row['layers']} ({row['what']})"), seconds(row["predicted_s"]),
            seconds(row["measured_s"]), "",
        )  # fmt: skip
    return table
