"""Stages that starve, ranks that lag."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import RATIO, SECONDS, Query, bars, table, timeseries
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    COLORS,
    PICKED,
    PICKERS,
    WAITED,
    part,
    per_step,
    share,
)


def board() -> Board:
    """The dashboard."""
    over_peers = f"orchestrator:compute_over_peers:ratio{{{PICKED}}}"
    return Board(
        "pipeline",
        "Pipeline",
        "Which stages have nothing to do, who waits for whom, and which rank is slower than its "
        "peers.",
        PICKERS,
        [
            timeseries(
                "Bubble, by stage", RATIO, ABOUT["bubble"],
                Query(f"avg by (stage) ({share('bubble')})", "stage {{stage}}"),
            ),
            timeseries(
                "Wait, by stage", RATIO, ABOUT["wait"],
                Query(f"avg by (stage) ({share('wait')})", "stage {{stage}}"),
            ),
            table(
                "Stages", RATIO,
                "Parts of a step, mean over the ranks of a stage, and its seconds of computation. "
                "Unequal seconds: the stage with most makes the others wait; move layers.",
                ["stage"],
                Query(f"avg by (stage) ({part('compute')})", "computation", unit=SECONDS),
                *(
                    Query(f"avg by (stage) ({share(name)})", name, color=color)
                    for name, color in COLORS.items()
                ),
                sort="computation",
            ),
            bars(
                "Stragglers", RATIO,
                "Computation of a rank over the mean of the other ranks of its stage. High: it has "
                "more work than its peers, or a slower device. Empty where no stage has two ranks.",
                Query(f"topk (10, {over_peers})", "rank {{rank}}, stage {{stage}}"),
                width=8,
            ),
            bars(
                "Waited for", SECONDS,
                "The ranks for which others of their stage wait, seconds a step, all waiting ranks "
                "together. High: this rank is late, so the others idle.",
                Query(f"topk (10, {per_step(WAITED, 'peer')})", "rank {{peer}}"),
                width=8,
            ),
            bars(
                "Longest bubbles", SECONDS,
                "The ranks that the pipeline leaves idle longest, seconds a step. High: give their "
                "stage more layers.",
                Query(f"topk (10, {part('bubble')})", "rank {{rank}}, stage {{stage}}"),
                width=8,
            ),
            timeseries(
                "Computation, by stage", SECONDS,
                "Mean over the ranks of a stage. Unequal: the slowest stage sets the pace of all.",
                Query(f"avg by (stage) ({part('compute')})", "stage {{stage}}"),
            ),
            timeseries(
                "Slowest rank over its peers", RATIO,
                "100%: all ranks of a stage are equally fast. High: one of them lags. Rising: it "
                "gets slower, as a hot device does.",
                Query(f"max by (stage) ({over_peers})", "stage {{stage}}"),
            ),
        ],
    )  # fmt: skip
