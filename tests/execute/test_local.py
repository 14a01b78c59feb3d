"""The local executor: same bits however transfers end, and a deadlock is told, not waited out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.parameters import initial_parameter
from orchestrator.execute.segment_runner import SegmentRunner, Values
from orchestrator.execute.verify import RandomFeed
from orchestrator.models import Model, build_model
from orchestrator.models.model import Recipe
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.text import parse, text
from tests.program.small import LENET, small_program

RECIPE = Recipe(lr=0.1, seed=1)
COLUMNS = (
    "layers: conv1..relu4, ranks: [0, 1], split: channel",
    "layers: fc5, ranks: [0], split: none",
)
DATA = ("layers: conv1..fc5, ranks: 0..2, split: batch",)
TRICK = (
    "layers: conv1..pool2, ranks: [0, 1], split: batch",
    "layers: fc3..fc5, ranks: [0, 1], split: channel, exchange: scatter",
)
STAGES = (
    "layers: conv1..pool2, ranks: [0], split: none",
    "layers: fc3..fc5, ranks: [1], split: none",
)
PIPELINE = "n_microbatches: 3\nschedule: 1F1B"
V = (
    "layers: conv1..pool1, ranks: [0], split: none",
    "layers: conv2..pool2, ranks: [1], split: none",
    "layers: fc3..relu3, ranks: [1], split: none",
    "layers: fc4..fc5, ranks: [0], split: none",
)
# relu1 and pool1 are a stage: there is an input half and no weight half.
WEIGHTLESS = (
    "layers: conv1, ranks: [0], split: none",
    "layers: relu1..pool1, ranks: [1], split: none",
    "layers: conv2..relu3, ranks: [1], split: none",
    "layers: fc4..fc5, ranks: [0], split: none",
)
PROGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "columns": (COLUMNS, ""),
    "data": (DATA, ""),
    "zero1": (DATA, "optimizer_sharding: zero1"),
    "turns": (TRICK, "training: {layer_batch: {fc4..fc5: 2}}"),
    "pipeline": (STAGES, PIPELINE),
    "replicas": (STAGES, f"{PIPELINE}\nreplicas: 2"),
    "zero bubble": (V, "n_microbatches: 3\nschedule: ZBVZeroBubble"),
    "weightless": (WEIGHTLESS, "n_microbatches: 3\nschedule: ZBVZeroBubble"),
}


def program_of(name: str, more: str = "", dtype: str = "float32") -> Program:
    entries, usual = PROGRAMS[name]
    return small_program(LENET, *entries, batch=12, more=f"{usual}\n{more}", dtype=dtype)


def trained(
    program: Program, steps: int = 2, *, strict: bool = True
) -> tuple[list[float], dict[str, Tensor], LocalExecutor]:
    feed = RandomFeed(program.model, program.global_batch)
    executor = LocalExecutor(program, feed, RECIPE, strict=strict)
    losses = [executor.step(step) for step in range(steps)]
    return losses, executor.parameters(), executor


def same_bits(a: Program, b: Program, *, strict: bool = True) -> None:
    (losses, weights, _), (others, other_weights, _) = trained(a), trained(b, strict=strict)
    assert losses == others
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, other_weights[name]), name


@pytest.mark.parametrize("name", PROGRAMS)
def test_two_runs_give_the_same_bits(name: str) -> None:
    same_bits(program_of(name), program_of(name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_whether_a_send_waits_for_its_receive_changes_no_bit(name: str) -> None:
    """Rendezvous as NCCL has it against buffered sends as gloo."""
    same_bits(program_of(name), program_of(name), strict=False)


@pytest.mark.parametrize("name", ["columns", "pipeline", "replicas", "turns", "zero bubble"])
@pytest.mark.parametrize("checkpoint", ["except_last", "always"])
def test_recomputing_the_forward_changes_no_bit(name: str, checkpoint: str) -> None:
    same_bits(program_of(name), program_of(name, f"activation_checkpoint: {checkpoint}"))


@pytest.mark.parametrize(
    ("checkpoint", "again"),
    [
        ("never", [False, False, False]),
        ("except_last", [True, True, False]),
        ("always", [True, True, True]),
    ],
)
def test_the_plan_says_which_microbatches_recompute(
    checkpoint: str, again: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = SegmentRunner.forward, []

    def watched(self: SegmentRunner, chunk: int, *args: Any, recompute: bool) -> Values:
        outputs = forward(self, chunk, *args, recompute=recompute)
        assert bool(self.saved[chunk].links) != recompute  # no graph is kept of what runs again
        seen.append((chunk, recompute))
        return outputs

    monkeypatch.setattr(SegmentRunner, "forward", watched)
    trained(program_of("pipeline", f"activation_checkpoint: {checkpoint}"), 1)
    assert dict(seen) == dict(enumerate(again))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("name", ["data", "replicas"])
def test_a_sharded_optimizer_changes_no_bit(name: str) -> None:
    same_bits(program_of(name), program_of(name, "optimizer_sharding: zero1"))


def test_a_sharded_optimizer_keeps_a_shard_of_the_momentum_only() -> None:
    _, _, plain = trained(program_of("data"), 1)
    _, _, sharded = trained(program_of("zero1"), 1)

    def momenta(executor: LocalExecutor) -> list[int]:
        return [
            sum(
                p.state["momentum"][0].untyped_storage().nbytes() // 4
                if p.sharded
                else sum(v.numel() for v in p.state["momentum"])
                for p in rank.parameters.values()
            )
            for rank in executor.ranks
        ]

    total = LENET.parameters
    assert momenta(plain) == [total] * 3
    assert momenta(sharded) == [-(-total // 3)] * 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_of_a_step_is_kept_after_it(name: str) -> None:
    """Activations, gradients and buffers are gone when the step has ended."""
    _, _, executor = trained(program_of(name), 1)
    for rank in executor.ranks:
        assert not rank.outputs, f"outputs of {list(rank.outputs)}"
        assert not rank.input_gradients
        assert not any(rank.incoming.values())
        for segment, runner in rank.runners.items():
            assert not runner.saved, f"segment {segment} keeps chunks {list(runner.saved)}"


def test_times_of_a_step_keep_the_programs_order() -> None:
    for name in PROGRAMS:
        program = program_of(name)
        _, _, executor = trained(program, 1)
        times = executor.times()
        for op in program.ops():
            begin, finish = times.begin[op.rank], times.finish[op.rank]
            assert begin <= times.ready[op.id] <= times.start[op.id] <= times.end[op.id] <= finish
            assert all(times.end[need] <= times.end[op.id] for need in op.needs)


# -- parameters -----------------------------------------------------------------------------------

SMALL = ("model.width=0.125", "model.image_size=64", "model.classes=8")


def shipped(name: str) -> tuple[Program, Model]:
    plan = load_plan(name, SMALL)
    assert plan.model.name is not None
    model = build_model(plan.model.name, {"width": 0.125, "image_size": 64, "classes": 8})
    return compile_plan(plan, model), model


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_the_ranks_tiles_cover_every_weight_with_its_start_value(name: str) -> None:
    """No NaN is left, and the start does not depend on who holds what."""
    program, model = shipped(name)
    executor = LocalExecutor(program, RandomFeed(model, 128), RECIPE)
    found = executor.parameters()
    weighted = [layer for layer in model.layers if layer.has_weights]
    assert set(found) == {f"{x.name}.{part}" for x in weighted for part in ("weight", "bias")}
    for layer in weighted:
        expected = initial_parameter(layer, layer.spec("weight"), RECIPE.seed).double()
        assert torch.equal(found[f"{layer.name}.weight"], expected), layer.name
        assert not found[f"{layer.name}.bias"].isnan().any()
        assert found[f"{layer.name}.bias"].unique().tolist() == [layer.layer.bias]  # type: ignore[attr-defined]


# -- deadlock at run time -------------------------------------------------------------------------


def edited(program: Program, change: Callable[[list[str]], list[str]]) -> Program:
    columns, order = parse("\n".join(change(text(program.columns, program.order).splitlines())))
    return replace(program, columns=columns, order=order)


def sent_last(lines: list[str]) -> list[str]:
    """Rank 0 sends the last microbatch when it has the gradient of it."""
    start = lines.index("rank 1")
    line = lines.pop([line.split()[1] for line in lines].index("1SEND_F2"))
    lines.insert(start - 1, line)
    return lines


@pytest.mark.parametrize("strict", [True, False])
def test_a_deadlock_is_told_with_who_waits_for_whom(strict: bool) -> None:
    program = edited(program_of("pipeline"), sent_last)
    with pytest.raises(RuntimeError, match="deadlock") as caught:
        trained(program, 1, strict=strict)
    message = str(caught.value)
    assert "rank 0 waits for rank 1 at 1RECV_B2" in message
    assert "rank 1 waits for rank 0 at 1RECV_F2" in message
    assert "before fc3" in message


def test_a_collective_that_one_rank_leaves_out_is_told() -> None:
    program = program_of("data")
    executor = LocalExecutor(program, RandomFeed(program.model, 12), RECIPE)
    executor.ranks[1].ops = tuple(op for op in executor.ranks[1].ops if op.kind != "ALL_REDUCE")
    with pytest.raises(RuntimeError, match="deadlock: rank 0 waits for rank 1, 2 at 0ALL_REDUCE0"):
        executor.step(0)
