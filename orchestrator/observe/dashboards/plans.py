"""Several plans or runs in the same pictures."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import (
    BYTES,
    GRID_COLUMNS,
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
    STEPS,
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
    # A plan of one rank sends nothing, and has no series that says so.
    sent = f"{per_step(SENT, RUN_LABELS, PICKED)} or 0 * {last(f'{STEPS}{{{PICKED}}}', RUN_LABELS)}"
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
                Query(last_images(PICKED), "images a second", width=150),
                Query(
                    f"avg by ({RUN_LABELS}) ({last(step(PICKED))})", "step",
                    unit=SECONDS, width=110,
                ),
                Query(sent, "bytes a step", unit=BYTES, width=130),
                Query(f"max by ({RUN_LABELS}) ({memory})", "peak memory", unit=BYTES, width=130),
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
                images(PICKED), width=24,
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


def _of_runs(
    title: str, unit: str, about: str, expr: str, *, width: int = 8, signed: bool = False
) -> Panel:
    """A line for each run, with its three labels: so it has one colour in all panels.

    The widest panel names them, for all: in the others the names would take half of the room.
    """
    named = width == GRID_COLUMNS
    about = about if named else f"{about} Colours as above."
    query = Query(expr, "{{run}}")
    return timeseries(title, unit, about, query, width=width, legend=named, signed=signed)
