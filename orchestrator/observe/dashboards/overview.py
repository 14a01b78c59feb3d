"""One run: how fast it is, how well it learns, where its time goes."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board, Variable
from orchestrator.observe.dashboards.panels import (
    BYTES,
    NUMBER,
    SECONDS,
    SHARE,
    SHORT,
    Label,
    Panel,
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
    IMAGES_COLOR,
    LOSS,
    LOSS_COLOR,
    PEAK_MEMORY,
    PICKED,
    PICKERS,
    RANK_STEPS,
    RUN_LABELS,
    STEP_COLOR,
    STEPS,
    WORLD_SIZE,
    images,
    last,
    last_images,
    share,
    step,
)


def board() -> Board:
    """The dashboard."""
    one_rank = PICKED + ', rank=~"$rank"'
    a_loss = f'{LOSS}{{plan=~"$plan", run="$run"}}'
    a_prediction = f'max ({STEPS}{{{PICKED}, source="simulated"}}) * NaN'
    return Board(
        "overview",
        "Overview",
        "One run: how fast it is, how well it learns, and where the time of a step goes.",
        [
            *PICKERS,
            Variable(
                "rank", "Ranks one by one", f"label_values({RANK_STEPS}{{{PICKED}}}, rank)",
                multi=True, by_number=True,
            ),
        ],
        [
            *_stats(a_loss),
            timeseries(
                "Step time", SECONDS, "Mean over the ranks, and the slowest one. High: slow. Far "
                "apart: one rank lags behind.",
                Query(f"avg ({step()})", "mean", STEP_COLOR),
                Query(f"max ({step()})", "slowest rank", STEP_COLOR, dashed=True),
                width=8,
            ),
            timeseries(
                "Images a second", SHORT, "Of all ranks together. High: fast. A dip: something "
                "gets in between, such as a checkpoint or slow data.",
                Query(f"max ({images()})", "images a second", IMAGES_COLOR),
                width=8, legend=False,
            ),
            timeseries(
                "Loss", NUMBER, "Mean over the images of a step. It has to fall. High or "
                "rising: lower the learning rate.",
                Query(f"max ({a_loss})", "loss", LOSS_COLOR),
                Query(a_prediction, "a prediction has no loss"),
                width=8, signed=True,
            ),
            timeseries(
                "Where the time goes", SHARE, f"Parts of a step, mean over the ranks. {ABOUT_ALL}",
                *(Query(f"avg ({share(name)})", name, color) for name, color in COLORS.items()),
                width=24, stacked=True,
            ),
            table(
                "Where the time goes, rank by rank ($listed ranks)", SHARE,
                "Parts of a rank's step; together they are the step. Of a simulation with replicas "
                f"only the first one's ranks are listed. {ABOUT_ALL}",
                [Label("rank", 80), Label("stage", 80)],
                *(
                    Query(f"avg by (rank, stage) ({last(share(name))})", name, color)
                    for name, color in COLORS.items()
                ),
                height=10, sort="rank", descending=False,
            ),
            heading("Ranks one by one"),
            timeseries(
                "Rank $rank", SHARE, f"Parts of this rank's step, coloured as above. {ABOUT_ALL}",
                *(
                    Query(f"avg ({share(name, one_rank)})", name, color)
                    for name, color in COLORS.items()
                ),
                width=6, legend=False, stacked=True, repeat="rank",
            ),
        ],
    )  # fmt: skip


def _stats(loss: str) -> list[Panel]:
    ranks = f"count ({last(f'{RANK_STEPS}{{{PICKED}}}')})"
    world = f"max ({last(f'{WORLD_SIZE}{{{PICKED}}}', RUN_LABELS)}) or {ranks}"
    return [
        stat(
            "Step time", SECONDS, "A training step, mean over the ranks. High: slow.",
            Query(f"avg ({last(step())})"), width=3, empty="no step yet",
        ),
        stat(
            "Images a second", SHORT, "Of all ranks together. High: fast.",
            Query(f"max ({last_images()})"), width=3, empty="no step yet",
        ),
        stat(
            "Loss", NUMBER, "Mean over the images of the last step. It has to fall. High or "
            "not a number: lower the learning rate. A prediction has none.",
            Query(f"max ({last(loss, RUN_LABELS)})"), width=3, empty="not applicable",
        ),
        stat(
            "Steps", SHORT, "Steps that all ranks have ended. High: far into the run. "
            "A simulation has one.",
            Query(f"max ({last(f'{STEPS}{{{PICKED}}}', RUN_LABELS)})"), width=3, empty="none yet",
        ),
        stat(
            "Exposed", SHARE, f"Mean over the ranks. {ABOUT['exposed']}",
            Query(f"avg ({last(share('exposed'))})"), width=3, empty="no step yet",
        ),
        stat(
            "Loading", SHARE, f"Mean over the ranks. {ABOUT['loading']}",
            Query(f"avg ({last(share('loading'))})"), width=3, empty="no step yet",
        ),
        stat(
            "Peak memory", BYTES, "Of the rank that needs most. High: close to what a device "
            "has; the next larger batch will not fit.",
            Query(f"max ({last(f'{PEAK_MEMORY}{{{PICKED}}}')})"), width=3, empty="not known",
        ),
        stat(
            "Ranks listed", NUMBER, "Of all ranks. Below them in a simulation with replicas: these "
            "do the same, so only the first one's ranks are told of. High: none is left out.",
            Query(f'{ranks} * on () group_left (of) count_values("of", {world})', "of {{of}}"),
            width=3, empty="none yet",
        ),
    ]  # fmt: skip
