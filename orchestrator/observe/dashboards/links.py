"""Who sends how much to whom."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import (
    BYTES,
    RATIO,
    SECONDS,
    Query,
    bars,
    matrix,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    PICKERS,
    SENT,
    TRANSFERS,
    per_step,
    share,
)


def board() -> Board:
    """The dashboard."""
    return Board(
        "links",
        "Links",
        "Which rank sends how much to which, how long that takes, and for which layer.",
        PICKERS,
        [
            matrix(
                "Bytes a step, from rank (row) to rank (column)", BYTES,
                "What a rank hands to its transport in a step. High: this edge of the plan is the "
                "one to thin out, or to lay on a fast link. Of a reduction: its ring equivalent, "
                "to the next rank of the ring.",
                "rank", "peer", "to ", per_step(SENT, "rank, peer"),
            ),
            matrix(
                "Seconds a step, rank (row) with rank (column)", SECONDS,
                "How long a transfer between the two is in progress, in either direction; several "
                "at once share the time. High for few bytes: a slow link, or many small transfers.",
                "rank", "peer", "with ", per_step(TRANSFERS, "rank, peer"),
            ),
            bars(
                "Busiest edges", BYTES,
                "The ten edges with most bytes a step. High: where to change the plan first.",
                Query(f"topk (10, {per_step(SENT, 'rank, peer')})", "{{rank}} → {{peer}}"),
                width=8,
            ),
            bars(
                "Busiest layers", BYTES,
                "The layers that read what is sent, by bytes a step, all ranks together. High: "
                "split this layer otherwise, or not at all.",
                Query(f"topk (10, {per_step(SENT, 'layer')})", "{{layer}}"),
                width=8,
            ),
            bars(
                "Longest transfers", SECONDS,
                "The ten pairs with most seconds a step. High: a slow link, or one that many use.",
                Query(f"topk (10, {per_step(TRANSFERS, 'rank, peer')})", "{{rank}} – {{peer}}"),
                width=8,
            ),
            table(
                "By kind of transfer", BYTES,
                "All ranks together. High seconds for few bytes: latency counts; send less "
                "often. Receiving sends nothing.",
                ["op"],
                Query(per_step(SENT, "op"), "bytes a step"),
                Query(per_step(TRANSFERS, "op"), "seconds a step", unit=SECONDS),
                width=12, sort="bytes a step",
            ),
            timeseries(
                "Exposed communication", RATIO, ABOUT["exposed"],
                Query(f"avg ({share('exposed')})", "mean"),
                Query(f"max ({share('exposed')})", "worst rank"),
            ),
        ],
    )  # fmt: skip
