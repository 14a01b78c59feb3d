"""Stages that starve, ranks that lag."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import (
    FACTOR,
    SECONDS,
    SHARE,
    Label,
    Query,
    bars,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    COLORS,
    PICKED,
    PICKERS,
    WAITED,
    last,
    last_over_peers,
    part,
    per_step,
    share,
    step,
)


def board() -> Board:
    """The dashboard."""
    over_peers = f"orchestrator:compute_over_peers:ratio{{{PICKED}}}"
    # Every stage in every panel, or its colour would be another one.
    slowest = f"max by (stage) ({over_peers}) or max by (stage) ({step()}) * NaN"
    return Board(
        "pipeline",
        "Pipeline",
        "Which stages have nothing to do, who waits for whom, and which rank is slower than its "
        "peers.",
        PICKERS,
        [
            timeseries(
                "Bubble, by stage", SHARE, ABOUT["bubble"],
                Query(f"avg by (stage) ({share('bubble')})", "stage {{stage}}"),
            ),
            timeseries(
                "Wait, by stage", SHARE, ABOUT["wait"],
                Query(f"avg by (stage) ({share('wait')})", "stage {{stage}}"),
            ),
            table(
                "Stages ($listed ranks)", SHARE,
                "Parts of a step, mean over the ranks of a stage, and its seconds of computation. "
                "Unequal seconds: the stage with most makes the others wait; move layers.",
                [Label("stage", 80)],
                Query(
                    f"avg by (stage) ({last(part('compute'))})", "computation",
                    unit=SECONDS, width=120,
                ),
                *(
                    Query(f"avg by (stage) ({last(share(name))})", name, color)
                    for name, color in COLORS.items()
                ),
                sort="computation",
            ),
            bars(
                "Stragglers", FACTOR,
                "Computation of a rank over the mean of the other ranks of its stage. High: it has "
                "more work than its peers, or a slower device. Nothing where no stage has two "
                "ranks.",
                Query(f"topk (10, {last_over_peers()})", color=COLORS["compute"]),
                width=8, name="rank {{rank}}, stage {{stage}}", empty="no stage has two ranks",
            ),
            bars(
                "Waited for", SECONDS,
                "The ranks for which others of their stage wait, seconds a step, all waiting ranks "
                "together. High: this rank is late, so the others idle.",
                Query(f"topk (10, {per_step(WAITED, 'peer')} > 0)", color=COLORS["wait"]),
                width=8, name="rank {{peer}}", empty="nobody waits: 0 s",
            ),
            bars(
                "Longest bubbles", SECONDS,
                "The ranks that the pipeline leaves idle longest, seconds a step. High: give their "
                "stage more layers.",
                Query(f"topk (10, {last(part('bubble'))} > 0)", color=COLORS["bubble"]),
                width=8, name="rank {{rank}}, stage {{stage}}", empty="no bubbles: 0 s",
            ),
            timeseries(
                "Computation, by stage", SECONDS,
                "Mean over the ranks of a stage. Unequal: the slowest stage sets the pace of all.",
                Query(f"avg by (stage) ({part('compute')})", "stage {{stage}}"),
            ),
            timeseries(
                "Slowest rank over its peers", FACTOR,
                "1: all ranks of a stage are equally fast. High: one of them lags. Rising: it "
                "gets slower, as a hot device does. No line where a stage has one rank.",
                Query(slowest, "stage {{stage}}"),
            ),
        ],
    )  # fmt: skip
