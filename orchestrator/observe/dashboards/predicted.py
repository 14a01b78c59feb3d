"""How true the simulator is."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board, Variable
from orchestrator.observe.dashboards.panels import (
    PERCENT,
    SECONDS,
    SHORT,
    Label,
    Panel,
    Query,
    stat,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    COLORS,
    MEASURED_COLOR,
    OF_RUN,
    PEAK_MEMORY,
    PLAN,
    PREDICTED_COLOR,
    RANK_LABELS,
    RUN,
    RUNS,
    SENT,
    begun,
    images,
    last,
    last_images,
    listed,
    newest_first,
    part,
    per_step,
    step,
)

M = 'plan=~"$plan", run="$measured", source="measured"'
P = 'run="$prediction", source="simulated"'
_ALL_PARTS = "orchestrator:part_seconds:mean"


def board() -> Board:
    """The dashboard."""
    return Board(
        "predicted-and-measured",
        "Predicted and measured",
        "The same quantity from the simulator and from the workers, with the prediction's error.",
        _pickers(),
        [
            *_errors(),
            _both("Step time", "Mean over the ranks.", f"avg ({step(M)})", f"avg ({step(P)})"),
            *(
                _both(
                    name.capitalize(), f"Seconds a step, mean over the ranks. {ABOUT[name]}",
                    f"avg ({part(name, M)})", f"avg ({part(name, P)})",
                )
                for name in COLORS
            ),
            _both(
                "Images a second", "Of all ranks together.",
                f"max ({images(M)})", f"max ({images(P)})", SHORT,
            ),
            _part_by_part(),
            _rank_by_rank(),
        ],
    )  # fmt: skip


def _pickers() -> list[Variable]:
    """A measured run, and a prediction of the same plan.

    The measured run is the one that the dashboard before this one showed, or, if that was a
    prediction, the newest of its plan. Twice a moment is later than any: what is meant comes first.
    """
    shown = begun('run="$run"')
    of_picked_plans = begun('plan=~"$plan", source="measured"')
    shown_itself = f"{begun(M.replace('$measured', '$run'))} * 4"
    of_its_plan = f"({of_picked_plans} and on (plan) {shown}) * 2"
    measured = f"{shown_itself} or {of_its_plan} or {of_picked_plans}"
    predictions = begun('source="simulated"')
    of_same_plan = f"{predictions} and on (plan) {begun(M)}"
    prediction = f"({of_same_plan} and on (run) {shown}) * 2 or ({of_same_plan})"
    return [
        PLAN,
        RUN.carried(),
        Variable("measured", "Measured run", newest_first(measured), OF_RUN),
        Variable("prediction", "Prediction", newest_first(prediction), OF_RUN),
        Variable(
            "listed", "Ranks", listed(P), '/text="([^"]*)"/', hidden=True, in_url=False
        ),
        RUNS.carried(),
    ]  # fmt: skip


def _errors() -> list[Panel]:
    peak = [last(f"{PEAK_MEMORY}{{{run}}}") for run in (P, M)]
    sent = [per_step(SENT, "rank", run) for run in (P, M)]
    return [
        _error(
            "Error of the step time", "Below 0: the run is slower than predicted. Far from 0: "
            "calibrate again, on this machine.",
            _percent(*_shared("avg", last(step(P)), last(step(M)))),
        ),
        _error(
            "Error of images a second", "Above 0: the run is slower than predicted.",
            _percent(f"max ({last_images(P)})", f"max ({last_images(M)})"),
        ),
        _error(
            "Error of bytes sent", "Above 0 or below it: a fault, or two different plans, for "
            "bytes are known exactly.",
            _percent(*_shared("sum", *sent)),
        ),
        _error(
            "Error of peak memory", "Below 0: a plan that is said to fit may not.",
            _percent(*_shared("max", *peak)),
        ),
    ]  # fmt: skip


def _error(title: str, about: str, expr: str) -> Panel:
    about = f"Predicted over measured, less 1, of the ranks that both tell of. {about}"
    return stat(title, PERCENT, about, Query(expr), width=6, empty="nothing to compare")


def _percent(predicted: str, measured: str) -> str:
    return f"100 * ({predicted} / ({measured} > 0) - 1)"


def _shared(aggregate: str, predicted: str, measured: str) -> tuple[str, str]:
    """Both over the ranks that both tell of: a prediction with replicas lists the first one's."""
    return (
        f"{aggregate} ({predicted} and on (rank) {measured})",
        f"{aggregate} ({measured} and on (rank) {predicted})",
    )


def _both(title: str, about: str, measured: str, predicted: str, unit: str = SECONDS) -> Panel:
    return timeseries(
        title, unit, f"{about} The two far apart: the simulator is wrong about it.",
        Query(measured, "measured", MEASURED_COLOR),
        Query(predicted, "predicted", PREDICTED_COLOR),
        width=6,
    )  # fmt: skip


def _part_by_part() -> Panel:
    by = f"{RANK_LABELS}, part"
    predicted, measured = (
        f"avg by (part) ({last(f'{_ALL_PARTS}{{{this}}}', by)}"
        f" and on (rank, part) {last(f'{_ALL_PARTS}{{{other}}}', by)})"
        for this, other in ((P, M), (M, P))
    )
    a_step, _ = reversed(_shared("avg", last(step(P)), last(step(M))))
    error = f"({predicted} - {measured})"
    return table(
        "Where the error comes from", SECONDS,
        "Seconds of each part, mean over the ranks that both tell of, and the error as a share of "
        "the measured step. Below 0: the simulator thinks the part too short.",
        [Label("part")],
        Query(predicted, "predicted"),
        Query(measured, "measured"),
        Query(error, "error"),
        Query(f"100 * {error} / on () group_left () {a_step}", "error, of the step", unit=PERCENT),
        sort="part", descending=False,
    )  # fmt: skip


def _rank_by_rank() -> Panel:
    def columns(name: str, predicted: str, measured: str) -> list[Query]:
        p, m = (f"avg by (rank) ({last(seconds)})" for seconds in (predicted, measured))
        return [
            Query(p, f"{name}, predicted"),
            Query(m, f"{name}, measured"),
            Query(_percent(p, m), f"{name}, error", unit=PERCENT),
        ]

    return table(
        "Rank by rank (the prediction lists $listed ranks)", SECONDS,
        "Step and computation of each rank. High error on one rank alone: its device is not as "
        "described; on all: the costs are not. Of a prediction with replicas only the first one's "
        "ranks are listed.",
        [Label("rank", 80)],
        *columns("step", step(P), step(M)),
        *columns("compute", part("compute", P), part("compute", M)),
        height=10, sort="rank", descending=False,
    )  # fmt: skip
