"""Programs as text: one line per op, which parses back.

    7 1EXCHANGE_F0 route=0-1>0-1 to=1:2768896 from=1:2768896 needs=5

is op 7: the exchange before what segment 1 reads, forward, chunk 0; this rank sends 2,768,896 bytes
to rank 1 and receives as many from it, after op 5. The line stands under its rank, in the order in
which that rank posts its ops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.errors import InputError
from orchestrator.program.boundary import Route
from orchestrator.program.ops import (
    EXCHANGE,
    KINDS,
    LANE_OF,
    Columns,
    Op,
    Program,
    Transfers,
    others_of,
    size_of,
)

_PAIRS = r"[\d:,]+"
_LINE = re.compile(
    rf"(?P<id>\d+) (?P<segment>\d+)(?P<kind>{'|'.join(sorted(KINDS, key=len, reverse=True))})"
    r"(?P<microbatch>\d+)(?: route=(?P<senders>[\d,-]+)>(?P<receivers>[\d,-]+))?"
    rf"(?: to=(?P<to>{_PAIRS}))?(?: from=(?P<from>{_PAIRS}))?"
    r"(?: peers=(?P<peers>[\d,-]+))?(?: bytes=(?P<bytes>\d+))?"
    r"(?: flops=(?P<flops>\d+))?(?: needs=(?P<needs>[\d,]+))?"
)


def line(op: Op) -> str:
    """One op as text. A route that is of one rank to one other is not told twice."""
    fields = [str(op.id), str(op)]
    if op.transfers is not None:
        route, sends, receives = op.transfers
        if len(route.senders) > 1 or len(route.receivers) > 1:
            fields.append(f"route={_runs(route.senders)}>{_runs(route.receivers)}")
        for name, pairs in (("to", sends), ("from", receives)):
            if pairs:
                fields.append(f"{name}=" + ",".join([f"{peer}:{size}" for peer, size in pairs]))
    else:
        if op.peers:
            fields.append("peers=" + _runs(op.peers))
        if op.bytes:
            fields.append(f"bytes={op.bytes}")
    if op.flops:
        fields.append(f"flops={op.flops}")
    if op.needs:
        fields.append("needs=" + ",".join(map(str, op.needs)))
    return " ".join(fields)


def text(columns: Columns, order: Sequence[Sequence[int]]) -> str:
    """The ops of every rank, one a line."""
    lines = []
    for rank, ids in enumerate(order):
        lines.append(f"rank {rank}")
        lines += [line(columns.op(i)) for i in ids]
    return "\n".join(lines) + "\n"


def parse(source: str) -> tuple[Columns, tuple[tuple[int, ...], ...]]:
    """The inverse of :func:`text`.

    Raises:
        InputError: a line that is no op, an id twice or left out.
    """
    found: dict[int, Op] = {}
    order: list[list[int]] = []
    for number, raw in enumerate(source.splitlines(), 1):
        if raw.startswith("rank "):
            order.append([])
            continue
        match = _LINE.fullmatch(raw)
        if not match or not order or int(match["id"]) in found:
            raise InputError(f"not an op, or an op twice: {raw!r}", f"line {number}")
        kind, rank, transfers = match["kind"], len(order) - 1, None
        peers, size = _ranks(match["peers"]), int(match["bytes"] or 0)
        if LANE_OF[kind] == EXCHANGE:
            sends, receives = _pairs(match["to"]), _pairs(match["from"])
            if match["senders"]:
                route = Route(_ranks(match["senders"]), _ranks(match["receivers"]))
            else:
                others = tuple([peer for peer, _ in sends + receives])
                route = Route((rank,), others) if sends else Route(others, (rank,))
            transfers = Transfers(route, sends, receives)
            peers, size = others_of(transfers), size_of(transfers)
        op = Op(
            int(match["id"]), rank, LANE_OF[kind], kind, int(match["segment"]),
            int(match["microbatch"]), peers, size, int(match["flops"] or 0),
            _numbers(match["needs"]), transfers,
        )  # fmt: skip
        found[op.id] = op
        order[-1].append(op.id)
    if sorted(found) != list(range(len(found))):
        raise InputError("op ids are not 0, 1, 2, ... without a gap")
    columns = Columns()
    for i in range(len(found)):
        op = found[i]
        columns.rank.append(op.rank)
        columns.kind.append(op.kind)
        columns.segment.append(op.segment)
        columns.microbatch.append(op.microbatch)
        columns.peers.append(op.peers)
        columns.bytes.append(op.bytes)
        columns.flops.append(op.flops)
        columns.needs.append(op.needs)
        columns.transfers.append(op.transfers)
    return columns, tuple(map(tuple, order))


def _runs(ranks: Sequence[int]) -> str:
    """Rising numbers as text: ``0-3,8``."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join([f"{a}-{b}" if a < b else str(a) for a, b in runs])


def _ranks(found: str | None) -> tuple[int, ...]:
    ranks: list[int] = []
    for run in found.split(",") if found else ():
        first, _, last = run.partition("-")
        ranks += range(int(first), int(last or first) + 1)
    return tuple(ranks)


def _pairs(found: str | None) -> tuple[tuple[int, int], ...]:
    pairs = [pair.partition(":") for pair in found.split(",")] if found else []
    return tuple([(int(peer), int(size)) for peer, _, size in pairs])


def _numbers(found: str | None) -> tuple[int, ...]:
    return tuple(map(int, found.split(","))) if found else ()


def static_text(program: Program) -> str:
    """Who holds and computes what, and what crosses between whom: the half that is not ops."""
    lines = [
        f"{program.model.name} {program.precision} {program.optimizer}",
        f"batch={program.global_batch} replicas={program.replicas}x{program.ranks_per_replica}",
        f"recompute={program.recompute} sharded={program.sharded}",
    ]
    for segment in program.segments:
        lines.append(
            f"segment {segment.index} chunk={segment.chunk} update={segment.update_chunks}"
        )
        layers: dict[int, int] = {}  # ranks that differ in their examples only have the same
        for rank, part in segment.parts.items():
            if id(part.layers) not in layers:
                layers[id(part.layers)] = len(layers)
                lines += [
                    f"{x.sized.name} {x.sized.layer.kind} {x.out} {x.tiles}" for x in part.layers
                ]
            lines.append(f"{rank} {part.batch} {part.rows} {layers[id(part.layers)]}")
    for boundary in program.boundaries:
        lines.append(f"boundary {boundary.index} {boundary.reader} {boundary.parameter}")
        for turns in (boundary.messages, boundary.gradients):
            lines += [f"{m.source} {m.target} {m.taken} {m.given}" for turn in turns for m in turn]
    return "\n".join(lines) + "\n"
