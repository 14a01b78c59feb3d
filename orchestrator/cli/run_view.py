"""How a run looks while it goes on: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

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


def shares_table(summary: dict[str, Any], most: int = 16) -> Table:
    """Where a step's time goes, per rank and on average; measured or predicted."""
    table = Table(
        "rank", box=None, header_style="dim", pad_edge=False, title_justify="left",
        title=f"a step takes {_seconds(summary['step_time_s'])}: "
        f"{summary['images_per_s']:,.1f} images/s",
        caption=_ring_equivalent(summary), caption_justify="left", caption_style="dim",
    )  # fmt: skip
    shares = {
        "compute": "compute_time_s",
        "exposed": "exposed_communication_time_s",
        "wait": "wait_time_s",
        "bubble": "bubble_time_s",
        "other": "other_time_s",
    }
    for name in (*shares, "bytes sent", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["ranks"][:most]:
        table.add_row(
            str(row["rank"]),
            *(f"{abs(row[key] / row['step_time_s']):.1%}" for key in shares.values()),
            f"{row['bytes_sent']:,}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
        )
    if len(summary["ranks"]) > most:
        table.add_row("...", *[""] * 5, f"{len(summary['ranks']) - most} more", "")
    means = (_seconds(summary[key]) for key in shares.values())
    table.add_row("mean", *means, f"{summary['bytes_sent']:,}", "")
    return table


def _ring_equivalent(summary: dict[str, Any]) -> str | None:
    rings = summary.get("ring_equivalent_bytes")  # not in a summary of an older release
    return f"of the bytes sent {rings:,} are the ring equivalent of collectives" if rings else None


def _seconds(value: float) -> str:
    value = abs(value)
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"
