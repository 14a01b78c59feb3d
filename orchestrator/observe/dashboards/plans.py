"""Several plans or runs in the same pictures."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board, Variable
from orchestrator.observe.dashboards.panels import (
    BYTES,
    NUMBER,
    RATIO,
    SECONDS,
    SHORT,
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
    SENT,
    STEPS,
    images,
    per_step,
    share,
    step,
)


def board() -> Board:
    """The dashboard."""
    picked = 'plan=~"$plan", run=~"$run"'
    by = "run, plan, source"
    name = "{{plan}} ({{source}}, {{run}})"
    memory = f"{PEAK_MEMORY}{{{picked}}}"
    return Board(
        "plans",
        "Plans",
        "Two or more plans or runs, measured or simulated, one over the other.",
        [PLAN, Variable("run", "Runs", STEPS + '{plan=~"$plan"}', everything=True)],
        [
            table(
                "Side by side", RATIO,
                f"One row for each run; parts of a step are means over the ranks. {ABOUT_ALL}",
                ["plan", "run", "source"],
                Query(images(picked), "images a second", unit=SHORT),
                Query(f"avg by ({by}) ({step(picked)})", "step", unit=SECONDS),
                *(
                    Query(f"avg by ({by}) ({share(name, picked)})", name, color=color)
                    for name, color in COLORS.items()
                ),
                Query(per_step(SENT, by, picked), "bytes a step", unit=BYTES),
                Query(f"max by ({by}) ({memory})", "peak memory", unit=BYTES),
                sort="images a second",
            ),
            timeseries(
                "Images a second", SHORT, "Of all ranks together. High: the faster plan.",
                Query(images(picked), name),
            ),
            timeseries(
                "Step time", SECONDS, "Mean over the ranks. High: slow.",
                Query(f"avg by ({by}) ({step(picked)})", name),
            ),
            timeseries(
                "Loss", NUMBER, "Plans of one model with one seed have the same loss at the same "
                "step; a faster one only gets there sooner. High: something else differs.",
                Query(f"orchestrator_loss{{{picked}}}", name),
            ),
            timeseries(
                "Exposed communication", RATIO, ABOUT["exposed"],
                Query(f"avg by ({by}) ({share('exposed', picked)})", name),
            ),
            timeseries(
                "Wait", RATIO, ABOUT["wait"],
                Query(f"avg by ({by}) ({share('wait', picked)})", name),
            ),
            timeseries(
                "Bubble", RATIO, ABOUT["bubble"],
                Query(f"avg by ({by}) ({share('bubble', picked)})", name),
            ),
        ],
    )  # fmt: skip
