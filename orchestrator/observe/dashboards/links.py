"""Who sends how much to whom."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board
from orchestrator.observe.dashboards.panels import (
    BYTES,
    SECONDS,
    SHARE,
    Label,
    Query,
    bars,
    matrix,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    BYTES_COLOR,
    COLORS,
    PICKERS,
    SENT,
    TRANSFER_COLOR,
    TRANSFERS,
    per_step,
    share,
)

# From grey to full colour: told from each other, and from the panel, on dark and on bright ground.
PURPLES = ("#6F6A70", "#8D6F83", "#AD7496", BYTES_COLOR)
BROWNS = ("#6E6862", "#7F5F45", "#915324", TRANSFER_COLOR)


def board() -> Board:
    """The dashboard."""
    pairs = f"{per_step(SENT, 'rank, peer')} > 0"
    times = f"{per_step(TRANSFERS, 'rank, peer')} > 0"
    return Board(
        "links",
        "Links",
        "Which rank sends how much to which, how long that takes, and for which layer.",
        PICKERS,
        [
            matrix(
                "Bytes a step, from rank (row) to rank (column); $listed ranks", BYTES,
                "What a rank hands to its transport in a step. High: this edge of the plan is the "
                "one to thin out, or to lay on a fast link. Of a reduction: its ring equivalent, "
                "to the next rank of the ring. An empty cell: these two send nothing.",
                "rank", "peer", "to ", _or_none(pairs, "rank", "peer"),
                hue=PURPLES, last_column="none",
            ),
            matrix(
                "Seconds a step, rank (row) with rank (column); $listed ranks", SECONDS,
                "How long a transfer between the two is in progress, in either direction; several "
                "at once share the time. High for few bytes: a slow link, or many small transfers. "
                "An empty cell: these two have none.",
                "rank", "peer", "with ", _or_none(times, "rank", "peer"),
                hue=BROWNS, last_column="none",
            ),
            bars(
                "Busiest edges", BYTES,
                "The ten edges with most bytes a step. High: where to change the plan first.",
                Query(f"topk (10, {pairs})", color=BYTES_COLOR),
                width=8, name="{{rank}} → {{peer}}", empty="nothing is sent: 0 B",
            ),
            bars(
                "Busiest layers", BYTES,
                "The layers that read what is sent, by bytes a step, all ranks together. High: "
                "split this layer otherwise, or not at all.",
                Query(f"topk (10, {per_step(SENT, 'layer')} > 0)", color=BYTES_COLOR),
                width=8, name="{{layer}}", empty="nothing is sent: 0 B",
            ),
            bars(
                "Longest transfers", SECONDS,
                "The ten pairs with most seconds a step. High: a slow link, or one that many use.",
                Query(f"topk (10, {times})", color=TRANSFER_COLOR),
                width=8, name="{{rank}} – {{peer}}", empty="no transfers: 0 s",
            ),
            table(
                "By kind of transfer", BYTES,
                "All ranks together. High seconds for few bytes: latency counts; send less "
                "often. Receiving sends nothing.",
                [Label("op")],
                Query(_or_none(per_step(SENT, "op"), "op"), "bytes a step", width=140),
                Query(
                    _or_none(per_step(TRANSFERS, "op"), "op"), "seconds a step",
                    unit=SECONDS, width=140,
                ),
                width=12, sort="bytes a step",
            ),
            timeseries(
                "Exposed communication", SHARE, ABOUT["exposed"],
                Query(f"avg ({share('exposed')})", "mean", COLORS["exposed"]),
                Query(f"max ({share('exposed')})", "worst rank", COLORS["exposed"], dashed=True),
            ),
        ],
    )  # fmt: skip


def _or_none(expr: str, *labels: str) -> str:
    """A row that says 0 where there is none: Grafana 7 says "No data" of an empty table."""
    zero = "vector(0)"
    for label in labels:
        zero = f'label_replace({zero}, "{label}", "none", "", "")'
    return f"({expr}) or on () {zero}"
