"""One run: how fast it is, how well it learns, where its time goes."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board, Variable
from orchestrator.observe.dashboards.panels import (
    BYTES,
    NUMBER,
    RATIO,
    SECONDS,
    SHORT,
    Query,
    heading,
    stat,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    ABOUT_ALL,
    COLORS,
    PEAK_MEMORY,
    PICKED,
    PICKERS,
    STEPS,
    images,
    share,
    step,
)


def board() -> Board:
    """The dashboard."""
    one_rank = PICKED + ', rank=~"$rank"'
    loss = 'orchestrator_loss{plan=~"$plan", run="$run"}'
    memory = f"{PEAK_MEMORY}{{{PICKED}}}"
    return Board(
        "overview",
        "Overview",
        "One run: how fast it is, how well it learns, and where the time of a step goes.",
        [
            *PICKERS,
            Variable(
                "rank", "Ranks one by one", f"orchestrator_step_seconds_count{{{PICKED}}}",
                multi=True,
            ),
        ],
        [
            stat(
                "Step time", SECONDS, "A training step, mean over the ranks. High: slow.",
                Query(f"avg ({step()})"),
            ),
            stat(
                "Images a second", SHORT, "Of all ranks together. High: fast.",
                Query(images()),
            ),
            stat(
                "Loss", NUMBER, "Mean over the images of the last step. It has to fall. High or "
                "not a number: lower the learning rate.",
                Query(loss),
            ),
            stat(
                "Steps", SHORT, "Steps that all ranks have ended. High: far into the run. "
                "A simulation has one.",
                Query(f"{STEPS}{{{PICKED}}}"),
            ),
            stat(
                "Exposed communication", RATIO, ABOUT["exposed"],
                Query(f"avg ({share('exposed')})"),
            ),
            stat(
                "Peak memory", BYTES, "Of the rank that needs most. High: close to what a device "
                "has; the next larger batch will not fit.",
                Query(f"max ({memory})"),
            ),
            timeseries(
                "Step time", SECONDS, "Mean over the ranks, and the slowest one. High: slow. Far "
                "apart: one rank lags behind.",
                Query(f"avg ({step()})", "mean"),
                Query(f"max ({step()})", "slowest rank"),
                width=8,
            ),
            timeseries(
                "Images a second", SHORT, "Of all ranks together. High: fast. A dip: something "
                "gets in between, such as a checkpoint or slow data.",
                Query(images(), "{{source}}"),
                width=8,
            ),
            timeseries(
                "Loss", NUMBER, "Mean over the images of a step. It has to fall. High or "
                "rising: lower the learning rate.",
                Query(loss, "{{run}}"),
                width=8,
            ),
            timeseries(
                "Where the time goes", RATIO, f"Parts of a step, mean over the ranks. {ABOUT_ALL}",
                *(Query(f"avg ({share(name)})", name) for name in COLORS),
                stack_colors=COLORS,
            ),
            table(
                "Where the time goes, rank by rank", RATIO,
                f"Parts of a rank's step; together they are the step. {ABOUT_ALL}",
                ["rank", "stage"],
                *(
                    Query(f"avg by (rank, stage) ({share(name)})", name, color=color)
                    for name, color in COLORS.items()
                ),
                width=12, sort="compute",
            ),
            heading("Ranks one by one"),
            timeseries(
                "Rank $rank", RATIO, f"Parts of this rank's step. {ABOUT_ALL}",
                *(Query(f"avg ({share(name, one_rank)})", name) for name in COLORS),
                width=6, stack_colors=COLORS, repeat="rank",
            ),
        ],
    )  # fmt: skip
