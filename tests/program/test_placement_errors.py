"""Plans that load and cannot be compiled: each is refused with its line, its key and a remedy."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError
from orchestrator.models import Conv, Linear, Model, ReLU
from orchestrator.program import compile_plan, find_deadlock
from tests.program.small import LINEAR, small_plan

# Entries stand on lines 6, 7, ... of the file; what comes after them on the lines below.
REST = "layers: b..c, ranks: [0], split: none"
ALL = "layers: a..c, ranks: [0], split: none"
TWO = ("layers: a..relu, ranks: [0], split: none", "layers: b..c, ranks: [1], split: none")
FOUR = ("layers: a, ranks: [0], split: none", "layers: relu, ranks: [1], split: none",
        "layers: b, ranks: [0], split: none", "layers: c, ranks: [1], split: none")  # fmt: skip
VEE = (*FOUR[:2], "layers: b, ranks: [1], split: none", "layers: c, ranks: [0], split: none")
TURNS = ("layers: a..relu, ranks: [0, 1], split: batch",
         "layers: b, ranks: [0, 1], split: channel, exchange: broadcast")  # fmt: skip

# entries, further lines, place, message, remedy
REFUSED: list[tuple[tuple[str, ...], str, str, str, str]] = [
    (("layers: a..d, ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers",
     "linear has no layer 'd'; its layers: a relu b c", "write one of these for d"),
    (("layers: b..a, ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers",
     "'b..a' runs backwards: a comes before b", "write a..b"),
    (("layers: a..b, ranks: [0], split: none", "layers: relu..c, ranks: [0], split: none"), "",
     "t.yaml:7, placement[1].layers", "'relu..c' names relu, which placement[0] has already",
     "write layers: c"),
    ((ALL, "layers: relu..b, ranks: [0], split: none"), "", "t.yaml:7, placement[1].layers",
     "'relu..b' names relu, which placement[0] has already", "remove this entry"),
    (("layers: relu, ranks: [0], split: none", "layers: a..c, ranks: [0], split: none"), "",
     "t.yaml:7, placement[1].layers", "'a..c' names relu, which placement[0] has already",
     "write layers: [a, b..c]"),
    (("layers: a, ranks: [0], split: none", REST), "", "t.yaml:5, placement",
     "layers without a rank: relu", "add - {layers: relu, ranks: [0], split: none} before "
     "placement[1]"),
    (("layers: a..relu, ranks: [0], split: none",), "", "t.yaml:5, placement",
     "layers without a rank: b..c",
     "add - {layers: b..c, ranks: [0], split: none} as the last entry"),
    (("layers: [a, b], ranks: [0], split: none",), "", "t.yaml:5, placement",
     "layers without a rank: relu, c", "add relu to the layers of placement[0]"),
    # a list of layers
    (("layers: [a, relu, d], ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers[2]",
     "linear has no layer 'd'", "one of these"),
    (("layers: [b..c, relu..a], ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers[1]",
     "'relu..a' runs backwards", "write a..relu"),
    (("layers: [a..b, relu, c], ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers[1]",
     "'relu' names relu, which 'a..b' in the same list names already", "leave relu out"),
    (("layers: [all, b], ranks: [0], split: none",), "", "t.yaml:6, placement[0].layers[1]",
     "'b' names b, which 'all' in the same list names already", "leave b out"),
    (("layers: [c, a], ranks: [0], split: none", "layers: [relu, b], ranks: [1], split: none"), "",
     "t.yaml:6, placement[0].layers", "c reads b, which placement[1] places later",
     "move c and what reads it into an entry behind placement[1]"),
    (("layers: b..c, ranks: [0], split: none", "layers: a..relu, ranks: [1], split: none"), "",
     "t.yaml:6, placement[0].layers", "b reads relu, which placement[1] places later",
     "move placement[1] before placement[0]"),
    # the recipe's variable batch size
    ((ALL,), "training: {layer_batch: {b: 2}}", "t.yaml:7, training.layer_batch.b",
     "must reach c, where the loss is", "b..c: 2"),
    ((ALL,), "training: {layer_batch: {d..c: 2}}", "t.yaml:7, training.layer_batch.d..c",
     "has no layer 'd'", "write one of these for d"),
    ((ALL,), "replicas: 2\ntraining: {layer_batch: {c: 2}}", "t.yaml:8, training.layer_batch.c",
     "layer_batch with replicas", "replicas: 1"),
    ((ALL,), "training: {layer_batch: {a..c: 2}}", "t.yaml:7, training.layer_batch",
     "a smaller batch for all", "global_batch_size: 2"),
    ((ALL,), "training: {layer_batch: {b..c: 2, c: 4}}", "t.yaml:7, training.layer_batch.c",
     "after 4 examples and layers before it after 2", "keep one line"),
    ((ALL,), "training: {layer_batch: {b..c: 5}}", "t.yaml:6, placement[0]",
     "a microbatch of 12 examples does not divide into layer_batch of 5", "global_batch_size"),
    ((ALL,), "training: {layer_batch: {b..c: 24}}", "t.yaml:6, placement[0]",
     "a microbatch of 12 examples does not divide into layer_batch of 24", "global_batch_size"),
    (TWO, "training: {layer_batch: {relu..c: 2}}", "t.yaml:6, placement[0]",
     "relu starts to work in turns but pipeline stages follow", "be the last stage"),
    (TWO, "n_microbatches: 6\ntraining: {layer_batch: {relu..c: 2}}", "t.yaml:6, placement[0]",
     "relu starts to work in turns but pipeline stages follow", "be the last stage"),
    ((*TURNS, "layers: c, ranks: [2], split: none"), "", "t.yaml:7, placement[1]",
     "b starts to work in turns but pipeline stages follow", "be the last stage"),
    (("layers: a..relu, ranks: 0..7, split: batch, shares: [1, 1, 1, 1, 1, 1, 1, 1]",
      "layers: b..c, ranks: 0..7, split: channel, exchange: scatter"), "",
     "t.yaml:7, placement[1]", "does not divide into turns of", "global_batch_size"),
    # what does not divide
    (("layers: a..relu, ranks: 0..3, split: batch",
      "layers: b..c, ranks: 0..3, split: channel, exchange: scatter"), "",
     "t.yaml:6, placement[0].split", "a: 3 examples do not divide over 4 ranks",
     "a global_batch_size that gives each microbatch a multiple of 16"),
    (("layers: a..relu, ranks: 0..2, split: channel", REST), "", "t.yaml:6, placement[0].split",
     "a: 8 output channels do not divide over 3 ranks", "shares: [3, 3, 2] in an entry of its own"),
    (("layers: a..c, ranks: 0..1, split: channel, shares: [2, 1]",), "",
     "t.yaml:6, placement[0].shares", "a: 8 output channels do not divide over 2 ranks in shares "
     "[2, 1]", "shares: [4, 4] in an entry of its own"),
    (("layers: a..relu, ranks: 0..3, split: input", REST), "", "t.yaml:6, placement[0].split",
     "a: 6 input channels do not divide over 4 ranks", "shares: [2, 2, 1, 1]"),
    (("layers: a..c, ranks: 0..1, split: batch, shares: [4, 1]",), "",
     "t.yaml:6, placement[0].shares", "a: 12 examples do not divide over 2 ranks in shares [4, 1]",
     "a global_batch_size that gives each microbatch a multiple of 5"),
    (("layers: a..relu, ranks: 0..5, split: {batch: 2, channel: 3}", REST), "",
     "t.yaml:6, placement[0].split.channel", "a: 8 output channels do not divide over 3 ranks",
     "shares: {channel: [3, 3, 2]} in an entry of its own"),
    (("layers: a..c, ranks: 0..3, split: {batch: 2, channel: 2}, shares: {channel: [2, 1]}",), "",
     "t.yaml:6, placement[0].shares.channel", "a: 8 output channels do not divide over 2 ranks in "
     "shares [2, 1]", "shares: {channel: [4, 4]} in an entry of its own"),
    # schedules
    (FOUR, "schedule: 1F1B", "t.yaml:10, schedule",
     "1F1B needs every stage on ranks of its own; the stages here are on ranks 0, 1, 0, 1",
     "schedule: GPipe"),
    (TWO, "schedule: ZBVZeroBubble", "t.yaml:8, schedule",
     "run down the ranks and back up, such as 0, 1, 1, 0; the stages here are on ranks 0, 1",
     "schedule: GPipe"),
    ((*FOUR[:3], "layers: c, ranks: [2], split: none"), "schedule: Interleaved1F1B",
     "t.yaml:10, schedule", "go round the same ranks in turn, such as 0, 1, 0, 1", "GPipe"),
    ((FOUR[0], "layers: relu..b, ranks: [1, 2], split: channel",
      "layers: c, ranks: [0, 1], split: channel"), "schedule: 1F1B", "t.yaml:9, schedule",
     "1F1B needs every stage on ranks of its own; the stages here are on ranks 0, [0, 1, 2]",
     "GPipe"),
    (("layers: a, ranks: [0, 1], split: channel", "layers: relu, ranks: [2], split: none",
      "layers: b, ranks: [0], split: none", "layers: c, ranks: [2], split: none"),
     "schedule: InterleavedZeroBubble\nn_microbatches: 2", "t.yaml:10, schedule",
     "the stages here are on ranks [0, 1], 2, 0, 2", "GPipe"),
    (FOUR, "schedule: Interleaved1F1B\nn_microbatches: 3", "t.yaml:11, n_microbatches",
     "goes in rounds of 2 microbatches (one per group of ranks); 3 do not divide",
     "n_microbatches: 4"),
    (FOUR, "schedule: ZB-H1", "t.yaml:10, schedule",
     "ZB-H1 needs every stage on ranks of its own; the stages here are on ranks 0, 1, 0, 1",
     "schedule: GPipe"),
    ((*FOUR[:3], "layers: c, ranks: [2], split: none"), "schedule: LoopedBFS",
     "t.yaml:10, schedule", "LoopedBFS needs stages that go round the same ranks in turn", "GPipe"),
    (FOUR, "schedule: DualPipeV\nn_microbatches: 4", "t.yaml:10, schedule",
     "DualPipeV needs an even number of entries that run down the ranks and back up", "GPipe"),
    (VEE, "schedule: DualPipeV\nn_microbatches: 3", "t.yaml:11, n_microbatches",
     "DualPipeV needs as many microbatches as stages, 4; there are 3", "n_microbatches: 4"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[3])
def test_a_plan_that_cannot_be_is_refused_with_its_line(
    case: tuple[tuple[str, ...], str, str, str, str],
) -> None:
    entries, more, place, message, remedy = case
    plan = small_plan(*entries, batch=12, more=more)
    with pytest.raises(InputError) as caught:
        compile_plan(plan, LINEAR)
    assert caught.value.location == place
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert bool(remedy) == bool(caught.value.remedy)


def test_the_remedies_that_can_be_typed_work() -> None:
    """Shares in an entry of its own; the range that a layer_batch asks for; more microbatches."""
    cures = [
        (("layers: a..relu, ranks: 0..2, split: channel, shares: [3, 3, 2]", REST), ""),
        (("layers: a..relu, ranks: 0..3, split: input, shares: [2, 2, 1, 1]", REST), ""),
        (
            (
                "layers: a..relu, ranks: 0..5, split: {batch: 2, channel: 3}, "
                "shares: {channel: [3, 3, 2]}",
                REST,
            ),
            "",
        ),
        (
            (
                "layers: [a, relu], ranks: [0], split: none",
                "layers: [c, b], ranks: [1], split: none",
            ),
            "",
        ),
        ((ALL,), "training: {layer_batch: {b..c: 2}}"),
        ((ALL,), "training: {layer_batch: {b..c: 12}}"),
        (FOUR, "schedule: Interleaved1F1B\nn_microbatches: 4"),
        (FOUR, "schedule: GPipe"),
        (VEE, "schedule: DualPipeV\nn_microbatches: 4"),
    ]
    for entries, more in cures:
        program = compile_plan(small_plan(*entries, batch=12, more=more), LINEAR)
        assert find_deadlock(program) is None


def test_a_channel_cut_may_not_divide_where_there_are_no_weights() -> None:
    """Six channels of a pool on four ranks: 1, 2, 1, 2."""
    plan = small_plan(
        "layers: a, ranks: [0], split: none", "layers: relu, ranks: 0..2, split: channel", REST
    )
    program = compile_plan(plan, LINEAR)
    relu = next(s for s in program.segments if s.reader == "relu")
    assert [part.layers[0].out[0] for part in relu.parts.values()] == [
        ((0, 2),), ((2, 5),), ((5, 8),)
    ]  # fmt: skip


def test_a_rank_without_a_channel_or_example_is_left_out() -> None:
    chain = [Conv(name="a", channels=2, kernel=1), Linear(name="c", features=2)]
    narrow = Model("narrow", (2, 2, 2), chain)
    plan = small_plan("layers: a..c, ranks: 0..1, split: channel", batch=1)
    program = compile_plan(plan, narrow)
    assert sorted(program.segments[-1].parts) == [1]  # one example: one rank has its loss
    assert find_deadlock(program) is None


def test_an_update_within_a_step_needs_something_to_update() -> None:
    model = Model("free", (6,), [Linear(name="a", features=4), ReLU(name="r"), ReLU(name="s")])
    plan = small_plan(
        "layers: all, ranks: [0], split: none", batch=8, more="training: {layer_batch: {r..s: 4}}"
    )
    with pytest.raises(InputError, match=r"'r\.\.s' has no parameters") as caught:
        compile_plan(plan, model)
    assert caught.value.location == "t.yaml:7, training.layer_batch.r..s"


def test_rows_of_padding_only_are_not_split_off() -> None:
    layers = [Conv(name="c", channels=2, kernel=1, padding=1), Linear(name="fc", features=3)]
    model = Model("padded", (3, 4, 4), layers)
    entries = ("layers: c, ranks: [0, 1], split: height", "layers: fc, ranks: [0], split: none")
    with pytest.raises(InputError, match="c cannot be split by height: its padding of 1 gives"):
        compile_plan(small_plan(*entries), model)


def test_a_layer_with_the_name_of_a_half_that_the_split_makes() -> None:
    layers = [Linear(name="fc", features=4), ReLU(name="fc.sum"), Linear(name="c", features=2)]
    model = Model("named", (6,), layers)
    compile_plan(small_plan("layers: all, ranks: [0, 1], split: channel"), model)
    with pytest.raises(InputError, match="model named has a layer of this name") as caught:
        compile_plan(small_plan("layers: all, ranks: [0, 1], split: input"), model)
    assert caught.value.location == "t.yaml:6, placement[0].split"
    assert caught.value.remedy == "another name for the layer fc.sum"
