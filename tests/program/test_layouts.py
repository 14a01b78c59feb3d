"""One small plan for every row of the layouts table; ops and bytes worked out by hand.

The model is a (6 -> 8), relu, b (8 -> 8), c (8 -> 4) on a batch of 4, four bytes a value. The last
entry puts c where b is whole anyway, or on a rank that is looked at as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orchestrator.models import Model
from orchestrator.program import Program
from orchestrator.program.ledger import edges
from orchestrator.program.ops import FORWARD
from tests.program.small import LINEAR, normed, small_program


@dataclass(frozen=True)
class Row:
    """Entries, and what must be sent before one layer: (from, to, bytes) forward and backward."""

    name: str
    entries: tuple[str, ...]
    layer: str
    forward: tuple[tuple[int, int, int], ...]
    backward: tuple[tuple[int, int, int], ...]
    model: Model = LINEAR


def both(size: int) -> tuple[tuple[int, int, int], ...]:
    return ((0, 1, size), (1, 0, size))


A_CHANNEL = "layers: a..relu, ranks: [0, 1], split: channel"
A_BATCH = "layers: a..relu, ranks: [0, 1], split: batch"
A_NONE = "layers: a..relu, ranks: [0], split: none"
REST_CHANNEL = "layers: b..c, ranks: [0, 1], split: channel"
REST_BATCH = "layers: b..c, ranks: [0, 1], split: batch"
REST_1 = "layers: b..c, ranks: [1], split: none"
REST_2 = "layers: b..c, ranks: [2], split: none"
ROWS = [
    # 4 examples x the 4 features that the other rank lacks x 4 bytes
    Row("channel to whole", (A_CHANNEL, REST_CHANNEL), "b", both(64), both(64)),
    # the other rank lacks my 2 examples x 8 features x 4 bytes
    Row("batch to whole", (A_BATCH, REST_CHANNEL), "b", both(64), both(64)),
    # rank 1 lacks 2 examples x 8 x 4; rank 0 slices its own
    Row("whole to batch", (A_NONE, REST_BATCH), "b", ((0, 1, 64),), ((1, 0, 64),)),
    # rank 1 computes relu on 4 of 8 channels and is given 4 examples x 4 x 4
    Row(
        "whole to channel",
        ("layers: a, ranks: [0], split: none", "layers: relu, ranks: [0, 1], split: channel",
         REST_CHANNEL),
        "relu", ((0, 1, 64),), ((1, 0, 64),),
    ),
    # 2 examples x 4 channels x 4 bytes, all-to-all
    Row(
        "batch to channel",
        ("layers: a, ranks: [0, 1], split: batch", "layers: relu, ranks: [0, 1], split: channel",
         REST_CHANNEL),
        "relu", both(32), both(32),
    ),
    Row("channel to batch", (A_CHANNEL, REST_BATCH), "b", both(32), both(32)),
    # b reads the input channels it has; partial sums of 4 examples x 4 features go to their rank
    Row(
        "partial to channel",
        (A_CHANNEL, "layers: b, ranks: [0, 1], split: input",
         "layers: c, ranks: [0, 1], split: channel"),
        "b.sum", both(64), both(64),
    ),
    # ... and whole again: with the row above the two halves of an all-reduce
    Row(
        "partial to whole",
        (A_CHANNEL, "layers: b, ranks: [0, 1], split: input",
         "layers: c, ranks: [0, 1], split: channel"),
        "c", both(64), both(64),
    ),
    Row(
        "input after channel",
        (A_CHANNEL, "layers: b..c, ranks: [0, 1], split: input"), "b", (), (),
    ),
    # 4 examples x 8 features x 4 bytes
    Row("rank to rank", (A_NONE, REST_1), "b", ((0, 1, 128),), ((1, 0, 128),)),
    Row(
        "two ranks to one", (A_CHANNEL, REST_2), "b",
        ((0, 2, 64), (1, 2, 64)), ((2, 0, 64), (2, 1, 64)),
    ),
    # 6 of 8 channels from rank 0, 2 from rank 1, x 4 examples x 4 bytes
    Row(
        "unequal channels", (A_CHANNEL + ", shares: [3, 1]", REST_CHANNEL), "b",
        ((0, 1, 96), (1, 0, 32)), ((0, 1, 32), (1, 0, 96)),
    ),
    # 3 of 4 examples on rank 0; each rank needs 4 of 8 channels of all
    Row(
        "unequal batch", (A_BATCH + ", shares: [3, 1]", REST_CHANNEL), "b",
        ((0, 1, 96), (1, 0, 32)), ((0, 1, 32), (1, 0, 96)),
    ),
    # two rows of the batch; in each the columns swap 2 examples x 4 features x 4 bytes
    Row(
        "grid", ("layers: a..c, ranks: 0..3, split: {batch: 2, channel: 2}",), "b",
        ((0, 1, 32), (1, 0, 32), (2, 3, 32), (3, 2, 32)),
        ((0, 1, 32), (1, 0, 32), (2, 3, 32), (3, 2, 32)),
    ),
    # two channels over the cut x 4 examples x 9 x 4 bytes
    Row(
        "halo of a norm", ("layers: a..c, ranks: [0, 1], split: channel",), "norm",
        both(288), both(288), normed(columns=1),
    ),
    Row(
        "no halo at a column", ("layers: a..c, ranks: [0, 1], split: channel",), "norm",
        (), (), normed(columns=2),
    ),
]  # fmt: skip


def sent_before(program: Program, layer: str, direction: str) -> tuple[tuple[int, int, int], ...]:
    found = edges(program)
    return tuple(
        (e.from_rank, e.to_rank, found[e])
        for e in sorted(found)
        if e.layer == layer and e.direction == direction
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_change_of_layout_sends_what_the_table_says(row: Row) -> None:
    program = small_program(row.model, *row.entries)
    assert sent_before(program, row.layer, "forward") == row.forward
    assert sent_before(program, row.layer, "backward") == row.backward


def test_the_loss_of_an_example_is_computed_once() -> None:
    """c's 4 scores are cut in two, so each rank sends 2 scores of 2 examples: 16 bytes."""
    program = small_program(LINEAR, "layers: a..c, ranks: [0, 1], split: channel")
    assert sent_before(program, "loss", "forward") == both(16)
    assert sent_before(program, "loss", "backward") == both(16)
    parts = program.segments[-1].parts
    assert {rank: part.batch for rank, part in parts.items()} == {0: ((0, 2),), 1: ((2, 4),)}


@pytest.mark.parametrize(
    ("exchange", "turns"),
    [
        # one rank's 2 examples x 8 features x 4 bytes in its turn
        ("broadcast", [[(0, 1, 64)], [(1, 0, 64)]]),
        # in each turn one example of every rank
        ("scatter", [[(0, 1, 32), (1, 0, 32)], [(0, 1, 32), (1, 0, 32)]]),
    ],
)
def test_batch_to_whole_in_turns(exchange: str, turns: list[list[tuple[int, int, int]]]) -> None:
    program = small_program(LINEAR, A_BATCH, REST_CHANNEL + f", exchange: {exchange}")
    b = next(s for s in program.segments if s.reader == "b")
    assert (b.chunk, b.chunks) == (2, 2)
    for turn, expected in enumerate(turns):
        sent = [
            (op.rank, peer, size)
            for op in program.ops()
            if op.kind in FORWARD and (op.segment, op.microbatch) == (b.index, turn)
            for peer, size in (op.transfers.sends if op.transfers else ())
        ]
        assert sent == expected


def test_the_next_turns_transfer_runs_under_this_turns_compute() -> None:
    """Three turns: what turn 2 reads leaves when turn 1 begins, not before and not after it."""
    program = small_program(
        LINEAR,
        "layers: a..relu, ranks: 0..2, split: batch",
        "layers: b, ranks: 0..2, split: channel, shares: [2, 1, 1], exchange: scatter",
        "layers: c, ranks: [0], split: none",
        batch=9,
    )
    b = next(s for s in program.segments if s.reader == "b").index
    ops = program.rank_ops(1)
    names = [str(op) for op in ops]
    assert names.index(f"{b}EXCHANGE_F2") < names.index(f"{b}F1")
    gates = {str(op): {str(program.op(need)) for need in op.needs} for op in ops}
    assert gates[f"{b}EXCHANGE_F1"] == {"0F0"}
    assert gates[f"{b}EXCHANGE_F2"] == {"0F0", f"{b}B0"}  # the last that is computed before turn 1


def test_the_bias_of_a_layer_split_on_its_input_is_held_once() -> None:
    """Rank 0 has the first inputs of every output, so it adds the bias; rank 1 has weights only."""
    program = small_program(
        LINEAR, A_CHANNEL, "layers: b, ranks: [0, 1], split: input",
        "layers: c, ranks: [0], split: none",
    )  # fmt: skip
    parts = [p for s in program.segments for p in s.parts.values()]
    held = [layer for part in parts for layer in part.layers if layer.sized.name == "b"]
    assert [layer.parameters for layer in held] == [8 * 4 + 8, 8 * 4]
    biases = [[t.box for t in layer.tiles if t.parameter == "bias"] for layer in held]
    assert biases == [[(((0, 8),),)], []]


def test_gradients_are_summed_where_ranks_hold_the_same_weights() -> None:
    """a..c in one bucket: 6*8 + 8*8 + 8*4 weights and 8 + 8 + 4 biases, 164 values, 656 bytes."""
    program = small_program(LINEAR, "layers: a..c, ranks: [0, 1], split: batch")
    reductions = [op for op in program.ops() if op.kind == "ALL_REDUCE"]
    assert [op.rank for op in reductions] == [0, 1]
    assert {(op.peers, op.bytes) for op in reductions} == {((0, 1), 656)}
    assert sent_before(program, "a", "gradient") == both(656)
    program = small_program(LINEAR, "layers: a..c, ranks: 0..3, split: {batch: 2, channel: 2}")
    groups = {(op.rank, op.peers) for op in program.ops() if op.kind == "ALL_REDUCE"}
    assert groups == {(0, (0, 2)), (2, (0, 2)), (1, (1, 3)), (3, (1, 3))}


def test_a_sharded_optimizer_scatters_steps_on_a_shard_and_gathers() -> None:
    """164 values on 3 ranks are padded to 165: shards of 55, 220 bytes."""
    program = small_program(
        LINEAR, "layers: a..c, ranks: 0..2, split: batch", batch=6, more="optimizer_sharding: zero1"
    )
    rank = [op for op in program.rank_ops(1) if op.kind not in ("F", "B")]
    assert [(op.kind, op.bytes) for op in rank] == [
        ("REDUCE_SCATTER", 660), ("STEP", 220), ("ALL_GATHER", 660),
    ]  # fmt: skip
    assert [op.needs for op in rank[1:]] == [(rank[0].id,), (rank[1].id,)]


def test_nothing_is_sent_back_before_the_first_weights() -> None:
    program = small_program(
        LINEAR, "layers: a, ranks: [0], split: none", "layers: relu..c, ranks: [1], split: none"
    )
    # the receive is posted ahead of what is computed meanwhile
    assert list(map(str, program.rank_ops(0))) == ["1RECV_B0", "0F0", "1SEND_F0", "0B0", "0STEP0"]
    # the input gradient of a, which nobody wants, is not counted: 2 * 4 examples * 6 * 8
    flops = {str(op): op.flops for op in program.rank_ops(0)}
    assert (flops["0F0"], flops["0B0"]) == (384, 384)
    flops = {str(op): op.flops for op in program.rank_ops(1)}
    assert (flops["1F0"], flops["1B0"]) == (768, 1536)


def test_unequal_parts_along_two_axes() -> None:
    """Rank 0 has three of the four examples and six of the eight features, rank 3 one and two."""
    program = small_program(
        LINEAR,
        "layers: a..relu, ranks: 0..3, split: {batch: 2, channel: 2}, "
        "shares: {channel: [3, 1], batch: [3, 1]}",
        "layers: b..c, ranks: [0], split: none",
    )
    parts = program.segments[0].parts
    assert {r: (parts[r].batch, parts[r].layers[0].out) for r in parts} == {
        0: (((0, 3),), (((0, 6),),)),
        1: (((0, 3),), (((6, 8),),)),
        2: (((3, 4),), (((0, 6),),)),
        3: (((3, 4),), (((6, 8),),)),
    }
