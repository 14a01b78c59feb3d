"""A run as it looks: lines for a log, a bar for a terminal, and the table at its end."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.run_view import BarView, LineView, shares_table
from orchestrator.observe.accounting import Account, Shares

ACCOUNT = Account(0, 2.0, {0: Shares(2.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1)})


def test_lines_are_some_hundred_at_most_with_the_first_and_the_last() -> None:
    out = io.StringIO()
    with LineView(Console(file=out, width=80), 100, 1600) as view:
        view.status("starting Ray")
        for step in range(100, 1600):
            view.step(step, 2.25, ACCOUNT, 64.0)
    told = out.getvalue().splitlines()
    assert told[0] == "starting Ray"
    assert told[1] == "step 101/1600  loss 2.2500  64.0 images/s  exposed communication 20.0%"
    assert told[-1].startswith("step 1600/1600 ")
    assert 100 <= len(told) <= 300


def test_a_terminal_gets_a_bar_below_what_has_happened() -> None:
    out = io.StringIO()
    console = Console(
        file=out, width=80, force_terminal=True, highlight=False, markup=False, color_system=None
    )
    with BarView(console, 99_990, 99_993) as view:
        view.status("workers up: [0, 1]")
        for step in range(99_990, 99_993):
            view.step(step, 12.25, ACCOUNT, 1234.0)
    told = out.getvalue()
    assert "workers up: [0, 1]" in told
    assert "99993/99993" in told
    assert "0:00:0" in told
    assert "loss 12.2500  1234.0 images/s  exposed 20.0%" in told
    assert "…" not in told
    assert told.endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_bar_is_taken_down_when_the_run_is_interrupted() -> None:
    out = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        BarView(Console(file=out, force_terminal=True), 0, 3),
    ):
        raise KeyboardInterrupt
    assert out.getvalue().endswith("\x1b[?25h")


def summary_of(ranks: int) -> dict[str, Any]:
    row = {
        "step_time_s": 2.0, "images_per_s": 64.0, "compute_time_s": 1.0,
        "exposed_communication_time_s": 0.4, "wait_time_s": 0.3, "bubble_time_s": 0.2,
        "loading_time_s": 0.05, "other_time_s": 0.05, "bytes_sent": 123_456_789_012,
        "peak_memory_bytes": 80 * 2**30,
    }  # fmt: skip
    return {**row, "ranks": [{"rank": rank, **row} for rank in range(ranks)]}


@pytest.mark.parametrize("ranks", [1, 16, 4096])
def test_the_table_of_shares_fits_80_columns_and_a_screen(ranks: int) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(shares_table(summary_of(ranks)))
    told = out.getvalue().splitlines()
    assert max(map(len, told)) <= 80
    assert len(told) <= 24
    assert "…" not in out.getvalue()
    assert told[0].strip() == "a step takes 2.000 s: 64.0 images/s"
    assert told[1].split()[:7] == [
        "rank",
        "compute",
        "exposed",
        "wait",
        "bubble",
        "loading",
        "other",
    ]
    assert told[2].split()[:7] == ["0", "50.0%", "20.0%", "15.0%", "10.0%", "2.5%", "2.5%"]
    assert "123,456,789,012" in told[2]
    assert ("4080 more" in out.getvalue()) == (ranks == 4096)
