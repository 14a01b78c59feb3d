"""Several plans or runs in the same pictures."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import (
    BYTES,
    NUMBER,
    SECONDS,
    SHARE,
    SHORT,
    Label,
    Panel,
    Query,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    ABOUT_ALL,
    COLORS,
    PEAK_MEMORY,
    PLAN,
    RUN,
    RUN_LABELS,
    RUNS,
    SENT,
    images,
    last,
    last_images,
    loss,
    per_step,
    share,
    step,
)

PICKED = 'plan=~"$plan", run=~"$runs"'


def board() -> Board:
    """The dashboard."""
    memory = last(f"{PEAK_MEMORY}{{{PICKED}}}")
    runs = [Label("plan"), Label("run"), Label("source", 100)]
    return Board(
        "plans",
        "Plans",
        "Two or more plans or runs, measured or simulated, at the same time or in turn.",
        [PLAN, RUNS, RUN.carried()],
        [
            table(
                "Side by side", SHORT, "One row for each run, with its last values. High: fast.",
                runs,
                Query(last_images(PICKED), "images a second", width=140),
                Query(
                    f"avg by ({RUN_LABELS}) ({last(step(PICKED))})", "step",
                    unit=SECONDS, width=110,
                ),
                Query(per_step(SENT, RUN_LABELS, PICKED), "bytes a step", unit=BYTES, width=120),
                Query(f"max by ({RUN_LABELS}) ({memory})", "peak memory", unit=BYTES, width=120),
                sort="images a second",
            ),
            table(
                "Where the time goes", SHARE,
                f"Parts of a step, means over the ranks. {ABOUT_ALL}",
                [Label("run", 260), Label("source", 100)],
                *(
                    Query(f"avg by (run, source) ({last(share(name, PICKED))})", name, color)
                    for name, color in COLORS.items()
                ),
                sort="compute",
            ),
            _of_runs(
                "Images a second", SHORT, "Of all ranks together. High: the faster plan.",
                images(PICKED),
            ),
            _of_runs(
                "Step time", SECONDS, "Mean over the ranks. High: slow.", _mean(step(PICKED))
            ),
            _of_runs(
                "Loss", NUMBER, "Plans of one model with one seed have the same loss at the same "
                "step; a faster one only gets there sooner. High: something else differs. A "
                "prediction has no line.",
                loss(PICKED), signed=True,
            ),
            *(
                _of_runs(name.capitalize(), SHARE, ABOUT[name], _mean(share(name, PICKED)))
                for name in ("exposed", "wait", "bubble", "loading")
            ),
        ],
    )  # fmt: skip


def _mean(expr: str) -> str:
    return f"avg by ({RUN_LABELS}) ({expr})"


def _of_runs(title: str, unit: str, about: str, expr: str, *, signed: bool = False) -> Panel:
    """A line for each run, with its three labels: so it has one colour in all panels."""
    return timeseries(title, unit, about, Query(expr, "{{run}}"), width=8, signed=signed)
