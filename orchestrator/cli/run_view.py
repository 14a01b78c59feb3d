"""How a run looks while it goes on: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.cli import figures
from orchestrator.observe.accounting import Account


def _step_text(
    loss: float, account: Account, batch_rate: float, share: str = "exposed communication"
) -> str:
    exposed = account.mean.exposed_communication_time_s / account.step_time_s
    return f"loss {loss:.4f}  {batch_rate:.1f} images/s  {share} {exposed:.1%}"


class _View:
    def __init__(self, console: Console, start: int, stop: int) -> None:
        self.console, self.start, self.stop = console, start, stop
        self.images = 0

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class LineView(_View):
    """A line per event, for logs; steps at most some hundred lines."""

    def status(self, text: str) -> None:
        self.console.print(text)

    def step(self, step: int, loss: float, account: Account, images_per_s: float) -> None:
        every = max(1, (self.stop - self.start) // 200)
        if (step - self.start) % every == 0 or step + 1 == self.stop:
            text = _step_text(loss, account, images_per_s)
            self.console.print(f"step {step + 1}/{self.stop}  {text}")


class BarView(_View):
    """A bar that moves with the steps; what happens before it stands above."""

    def __init__(self, console: Console, start: int, stop: int) -> None:
        super().__init__(console, start, stop)
        self.progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=8), TimeElapsedColumn(),
            TextColumn("{task.description}"), console=console,  # 80 columns take 999,999 steps
        )  # fmt: skip
        self.task = self.progress.add_task("starting", total=stop, completed=start)

    def __enter__(self) -> BarView:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def status(self, text: str) -> None:
        self.progress.console.print(text)

    def step(self, step: int, loss: float, account: Account, images_per_s: float) -> None:
        text = _step_text(loss, account, images_per_s, "exposed")
        self.progress.update(self.task, completed=step + 1, description=text)


def shares_table(
    summary: dict[str, Any], most: int = 16, predicted: tuple[str, ...] | None = None
) -> Table:
    """Where a step's time goes, per rank and on average.

    Args:
        predicted: of a prediction, the assumed figures that its times rest on; None if measured.
    """
    written: Sequence[Callable[[float], str]] = (
        (_seconds, "{:.1%}".format, "{:,.1f}".format, "{:,.0f}".format)
        if predicted is None
        else (figures.seconds, figures.share, figures.three_digits, figures.three_digits)
    )
    seconds, share, rate, mebibytes = written
    mark = figures.mark(predicted or ())
    table = Table(
        "rank", box=None, header_style="dim", pad_edge=False, padding=(0, 0, 0, 1),
        title_justify="left",
        title=f"a step takes {mark}{seconds(summary['step_time_s'])}: "
        f"{mark}{rate(summary['images_per_s'])} images/s",
        caption=_ring_equivalent(summary), caption_justify="left", caption_style="dim",
    )  # fmt: skip
    shares = {
        "compute": "compute_time_s",
        "exposed": "exposed_communication_time_s",
        "wait": "wait_time_s",
        "bubble": "bubble_time_s",
        "loading": "loading_time_s",
        "other": "other_time_s",
    }
    for name in (*shares, "bytes sent", "peak MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["ranks"][:most]:
        table.add_row(
            str(row["rank"]),
            *(share(abs(row[key] / row["step_time_s"])) for key in shares.values()),
            f"{row['bytes_sent']:,}",
            mebibytes(row["peak_memory_bytes"] / 2**20),
        )
    if len(summary["ranks"]) > most:
        table.add_row("...", *[""] * len(shares), f"{len(summary['ranks']) - most} more", "")
    means = (seconds(summary[key]) for key in shares.values())
    table.add_row("mean", *means, f"{summary['bytes_sent']:,}", "")
    return table


def _ring_equivalent(summary: dict[str, Any]) -> str | None:
    rings = summary.get("ring_equivalent_bytes")  # not in a summary of an older release
    return f"of the bytes sent {rings:,} are the ring equivalent of collectives" if rings else None


def _seconds(value: float) -> str:
    """Seven characters below 1000 s, so that all columns fit a terminal."""
    value = abs(value)
    if value >= 0.09995:
        decimals = 3 if value < 9.9995 else 2 if value < 99.995 else 1
        return f"{value:,.{decimals}f} s"
    return f"{value * 1e3:.{2 if value < 0.009995 else 1}f} ms"
