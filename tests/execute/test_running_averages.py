"""Batch norm's running averages: torch's own under every plan, saved, and what evaluation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.cli.show import describe
from orchestrator.errors import InputError
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.reference import Reference
from orchestrator.execute.verify import RandomFeed, Verdict, verify
from orchestrator.models import (
    Add,
    BatchNorm,
    Conv,
    Dropout,
    GlobalAveragePool,
    Layer,
    Linear,
    Model,
    Recipe,
    ReLU,
    RunningAverage,
    SizedLayer,
    batch_norm,
    running_torch,
)
from orchestrator.models.box import Box, whole
from orchestrator.models.layer import Cut
from orchestrator.models.parameter import Constant, ParameterSpec
from orchestrator.models.pieces import cut_out
from orchestrator.models.randomness import Draw, keep_mask
from orchestrator.models.sized import LayerPart
from orchestrator.models.value import LABELS, Value, value_of
from orchestrator.program import Program
from orchestrator.program.ledger import GRADIENT, edges
from orchestrator.program.placement import update_examples
from orchestrator.program.precision import Precision
from orchestrator.simulate.memory import peak_memory
from orchestrator.train import checkpoint
from tests.program.small import small_plan, small_program

BATCH, STEPS, CHANNELS, P = 12, 3, 8, 0.25
RECIPE = Recipe(lr=0.05, momentum=0.0, weight_decay=0.0)
AVERAGES = [f"bn{n}.{name}" for n in (1, 2) for name in ("running_mean", "running_var")]


def conv(name: str, stride: int = 1) -> Conv:
    return Conv(
        name=name, channels=CHANNELS, kernel=3, padding=1, stride=stride, weight_std=0.2, bias=None
    )


def residual(group: int | None, momentum: float = 0.1, *, inverted: bool = False) -> Model:
    layers: list[Layer] = [
        conv("conv1", stride=2),
        BatchNorm(name="bn1", group=group, momentum=momentum),
        ReLU(name="relu1"),
        conv("conv2"),
        BatchNorm(name="bn2", group=group, eps=1e-3, momentum=momentum),
        Add(name="sum", inputs=("bn2", "relu1")),
        ReLU(name="relu2"),
        GlobalAveragePool(name="pool"),
        Dropout(name="drop", p=P, inverted=inverted),
        Linear(name="fc", features=6, weight_std=0.3),
    ]
    return Model("residual", (4, 9, 9), layers)


# -- the same network in plain torch --------------------------------------------------------------


class Residual(nn.Module):
    """The network by hand, its batch norm torch's own over the whole batch."""

    def __init__(
        self, start: dict[str, Tensor], momentum: float = 0.1, *, inverted: bool = False
    ) -> None:
        super().__init__()
        self.kept = 1 - P if inverted else 1.0, 1.0 if inverted else 1 - P
        self.conv1 = nn.Conv2d(4, CHANNELS, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS, momentum=momentum)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=momentum)
        self.fc = nn.Linear(CHANNELS, 6)
        self.double().load_state_dict({k: v.double() for k, v in start.items()}, strict=False)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = torch.relu(self.bn2(self.conv2(x)) + x).mean((2, 3))
        training, evaluation = self.kept
        x = x * evaluation if mask is None else x * mask / training
        scores: Tensor = self.fc(x)
        return scores


def trained(model: Model, momentum: float = 0.1, *, inverted: bool = False) -> Residual:
    """Three steps of plain gradient descent by torch's own optimizer."""
    start = LocalExecutor(program_of(model, "one"), feed_of(model), RECIPE).parameters()
    net = Residual(start, momentum, inverted=inverted)
    feed, samples = feed_of(model), torch.arange(BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=RECIPE.lr)
    for step in range(STEPS):
        draw = Draw(RECIPE.seed, step, samples, BATCH)
        like = torch.empty(BATCH, CHANNELS, dtype=torch.float64)
        mask = keep_mask("drop", (CHANNELS,), whole((CHANNELS,)), P, draw, like)
        scores = net(feed.images(step, samples).double(), mask)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, feed.labels(step, samples)).backward()
        optimizer.step()
    return net


def feed_of(model: Model) -> RandomFeed:
    return RandomFeed(model, BATCH)


# -- plans ----------------------------------------------------------------------------------------

REST = "layers: pool..fc, ranks: [0, 1], split: channel"
HALF = ("layers: conv1..relu1, ranks: [0], split: none",)
STAGES = (*HALF, "layers: conv2..fc, ranks: [1], split: none")
ALL = "layers: all, ranks: [0, 1], split: {}"
ZERO1 = "optimizer_sharding: zero1"
WHOLE_BATCH: dict[str, tuple[tuple[str, ...], str]] = {
    "one": (("layers: all, ranks: [0], split: none",), ""),
    "batch": ((ALL.format("batch"),), ""),
    "unequal batch": (("layers: all, ranks: 0..2, split: batch, shares: [3, 2, 1]",), ""),
    "channel": ((ALL.format("channel"),), ""),
    "replicated": ((ALL.format("none"),), ""),
    "height": (("layers: conv1..relu2, ranks: [0, 1], split: height", REST), ""),
    "unequal height": (
        ("layers: conv1..relu2, ranks: [0, 1], split: height, shares: [2, 3]", REST), "",
    ),
    "batch x height": (
        ("layers: conv1..relu2, ranks: 0..3, split: {batch: 2, height: 2}", REST), "",
    ),
    "batch x channel": (
        ("layers: conv1..relu2, ranks: 0..3, split: {batch: 2, channel: 2}", REST), "",
    ),
    "stages": (STAGES, ""),
    "zero1": ((ALL.format("batch"),), ZERO1),
    "zero1 of many": (("layers: all, ranks: 0..5, split: batch",), ZERO1),
    "run again": ((ALL.format("batch"),), "activation_checkpoint: always"),
}  # fmt: skip
GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "replicas": (("layers: all, ranks: [0], split: none",), "replicas: 2"),
    "replicas x zero1": ((ALL.format("channel"),), f"replicas: 2\n{ZERO1}"),
    "microbatches": (STAGES, "n_microbatches: 2\nschedule: 1F1B"),
    "microbatches, run again": (
        STAGES, "n_microbatches: 2\nschedule: 1F1B\nactivation_checkpoint: except_last",
    ),
    "zero bubble": (STAGES, "n_microbatches: 4\nschedule: InterleavedZeroBubble"),
    "zero bubble x zero1": (
        ("layers: conv1..relu1, ranks: [0, 1], split: batch",
         "layers: conv2..fc, ranks: [2, 3], split: batch"),
        f"n_microbatches: 2\nschedule: InterleavedZeroBubble\n{ZERO1}",
    ),
    "updates within the step": (
        ("layers: all, ranks: [0, 1], split: batch",), "training: {layer_batch: {conv2..fc: 6}}",
    ),
}  # fmt: skip
PLANS = WHOLE_BATCH | GROUPS


def program_of(model: Model, name: str, dtype: str = "float64") -> Program:
    entries, more = PLANS[name]
    return small_program(model, *entries, batch=BATCH, more=more, dtype=dtype)


def executor_of(model: Model, name: str, steps: int = STEPS) -> LocalExecutor:
    executor = LocalExecutor(program_of(model, name), feed_of(model), RECIPE)
    for step in range(steps):
        executor.step(step)
    return executor


def verdict_of(name: str, group: int | None, steps: int = STEPS) -> Verdict:
    entries, more = PLANS[name]
    plan, model = small_plan(*entries, batch=BATCH, more=more), residual(group)
    updates = update_examples(plan, model)
    return verify(program_of(model, name), RECIPE, update_examples=updates, steps=steps)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_after_three_steps_they_are_those_of_torch(name: str, momentum: float) -> None:
    model = residual(None, momentum)
    expected = trained(model, momentum).state_dict()
    found = executor_of(model, name).parameters()
    for average in AVERAGES:
        assert (expected[average] - found[average]).abs().max() < 1e-12, average
        assert found[average].std() > 1e-3


@pytest.mark.parametrize("name", [*GROUPS, "batch", "unequal batch", "batch x height", "zero1"])
def test_of_groups_it_is_the_mean(name: str) -> None:
    """Of three examples, which no plan here tears by time, and most tear by rank."""
    verdict = verdict_of(name, 3)
    assert verdict.passed, verdict.problems


def test_one_device_runs_torch_on_each_group_and_takes_the_mean() -> None:
    model = residual(4)
    reference = Reference(
        model, feed_of(model), RECIPE, global_batch=BATCH, dtype="float64", update_examples={}
    )
    images = feed_of(model).images(0, torch.arange(BATCH)).double()
    x = nn.functional.conv2d(images, reference.weights["conv1.weight"], None, 2, 1).detach()
    reference.step(0)
    norms = [nn.BatchNorm2d(CHANNELS).double() for _ in range(3)]
    for norm, rows in zip(norms, x.split(4), strict=True):
        norm(rows)
    for name in ("running_mean", "running_var"):
        expected = sum(dict(norm.named_buffers())[name] for norm in norms) / 3
        assert (reference.weights[f"bn1.{name}"] - expected).abs().max() < 1e-12


def test_they_are_summed_with_the_gradients() -> None:
    """No op more than weight and bias have, and twice the channels of bytes, from each rank."""
    program = program_of(residual(None), "batch", dtype="float32")
    assert {op.kind for op in program.ops()} == {
        "F", "B", "EXCHANGE_F", "EXCHANGE_B", "ALL_REDUCE", "STEP",
    }  # fmt: skip
    sent = sum(n for e, n in edges(program).items() if e.direction == GRADIENT)
    parameters, averages = residual(None).parameters, 4 * CHANNELS
    assert parameters == 9 * CHANNELS * (4 + CHANNELS) + 4 * CHANNELS + 6 * (CHANNELS + 1)
    assert sent == 2 * 4 * (parameters + averages)  # a ring of two: each sends all of it


def test_they_are_no_parameters_of_the_network() -> None:
    entries, _ = PLANS["batch x channel"]
    program = program_of(residual(None), "batch x channel", dtype="float32")
    found = describe(small_plan(*entries, batch=BATCH), program, peak_memory(program))
    layers = {row["name"]: row["parameters"] for row in found["layers"]}
    assert layers["bn1"] == 2 * CHANNELS
    assert found["parameters"] == sum(layers.values())
    first, *_ = found["ranks"]  # half of the channels; then all it has of the rest
    assert first["parameters"] == (found["parameters"] - layers["fc"]) / 2 + layers["fc"] / 2


def test_they_have_no_velocity() -> None:
    (rank,) = executor_of(residual(None), "one", 1).ranks
    (parameters,) = rank.parameters.values()
    kept = parameters.state["momentum"]
    assert sum(v.numel() for v in kept) == residual(None).parameters
    assert sum(w.numel() for w in parameters.own) == residual(None).parameters + 4 * CHANNELS


# -- what verify finds ----------------------------------------------------------------------------


def test_an_update_that_forgets_the_past_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(self: RunningAverage, value: Tensor, found: Tensor) -> None:
        value.detach().copy_(found)

    monkeypatch.setattr(RunningAverage, "apply", replaced)
    verdict = verdict_of("batch", None, steps=1)
    assert not verdict.passed
    assert any("bn2.running_var differs by" in problem for problem in verdict.problems)


def named(name: str, group: int | None = None) -> str:
    verdict = verdict_of(name, group, steps=1)
    assert not verdict.passed
    return verdict.problems[0]


def test_a_share_that_is_counted_at_each_forward_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, before = running_torch.tell, dict[int, list[Tensor]]()

    def counting(y: Tensor, running: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        pairs = zip(running, found, strict=True)
        found = [found + sum(before.setdefault(r.data_ptr(), []), 0 * found) for r, found in pairs]
        if not torch.is_grad_enabled():
            for average, share in zip(running, found, strict=True):
                before[average.data_ptr()].append(share)
        return usual(y, running, found)

    monkeypatch.setattr(running_torch, "tell", counting)
    assert verdict_of("batch", None, steps=1).passed
    before.clear()
    told = named("run again")
    assert told.startswith("bn2: what it finds in the batch for its running_"), told
    assert told.endswith("(backward)")


def test_a_share_by_another_measure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large for every rank, whatever its examples."""
    usual = running_torch.tell

    def evenly(y: Tensor, running: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        return usual(y, running, [share * BATCH / len(y) / 3 for share in found])

    monkeypatch.setattr(running_torch, "tell", evenly)
    assert not verdict_of("unequal batch", 3, steps=1).passed
    assert named("unequal batch", 4).startswith("bn2: what it finds in the batch for its running_")


def test_a_variance_over_n_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = batch_norm.combined

    def biased(gathered: Tensor) -> tuple[Tensor, ...]:
        _, mean, variance = usual(gathered)
        return torch.full_like(mean, torch.inf).clamp_max(1e300), mean, variance

    monkeypatch.setattr(batch_norm, "combined", biased)
    told = named("batch")
    assert told.startswith("bn2: what it finds in the batch for its running_var differs"), told


# -- evaluation -----------------------------------------------------------------------------------


def evaluated(executor: LocalExecutor, images: Tensor) -> Tensor:
    """Class scores: what one rank's segments give, the next rank's read."""
    program, values = executor.program, dict[tuple[int, int], Tensor]()
    runners = [
        runner for index in range(len(program.segments))
        for rank in executor.ranks for n, runner in rank.runners.items() if n == index
    ]  # fmt: skip
    scores = torch.empty(0)
    for segment, runner in zip(program.segments, runners, strict=True):
        imports = []
        for found in segment.imports:
            boundary = program.boundaries[found.boundary]
            data = torch.zeros(len(images), dtype=torch.int64) if found.source == LABELS else images
            made = values.get((boundary.producer, boundary.layer), data)
            imports.append(data if found.boundary < 0 else made)
        found_here = runner.evaluate(tuple(imports))
        values |= {(segment.index, n): y for n, y in found_here.items()}
        assert not runner.saved
        if segment.has_loss:
            scores = found_here[segment.sources[-1][0]]
    return scores


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", ["one", "stages"])
def test_evaluation_is_torch_in_eval(name: str, inverted: bool) -> None:
    """Of five examples, which are no batch of the training; dropout of 2012, and as torch's."""
    model = residual(None, inverted=inverted)
    net = trained(model, inverted=inverted).eval()
    executor = executor_of(model, name)
    images = torch.randn(5, 4, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    expected = net(images)
    before = executor.parameters()
    found = evaluated(executor, images)
    assert (found - expected).abs().max() < 1e-12
    assert (found[:2] - evaluated(executor, images[:2])).abs().max() < 1e-12
    assert all(torch.equal(x, before[key]) for key, x in executor.parameters().items())
    reference = Reference(
        model, feed_of(model), RECIPE, global_batch=BATCH, dtype="float64", update_examples={}
    )
    for step in range(STEPS):
        reference.step(step)
    assert (reference.evaluate(images) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(6, 5, 4), (6,)])
def test_a_part_in_evaluation_is_the_part_of_the_whole(shape: tuple[int, ...]) -> None:
    value = value_of(shape)
    sized = SizedLayer.of(BatchNorm(name="bn", group=4), value)
    generator = torch.Generator().manual_seed(0)
    named = {s.name: torch.rand(s.shape, generator=generator) + 0.5 for s in sized.specs}
    x = torch.randn(3, *shape, generator=generator)  # no group of four
    rest = () if len(shape) == 1 else (((1, 3),), ((0, 4),))
    out: Box = (((0, 2), (3, 5)), *rest)
    part = sized.part(out, sized.reads(out))
    tiles = [cut_out(named[tile.parameter], tile.box) for tile in part.tiles]
    rows = (((0, 3),), *out)
    y = sized.layer.compute(part, (cut_out(x, rows),), tiles, None)
    assert torch.allclose(y, cut_out(sized.whole((x,), named, None), rows), atol=1e-6)


def test_in_evaluation_a_cut_needs_no_moments() -> None:
    layer = BatchNorm(name="bn", group=5)
    sized = SizedLayer.of(layer, value_of((6, 5, 4)))
    cut = Cut({"batch": 2, "height": 2}, (((0, 2),), ((2, 4),)), 4, 4, 4, evaluating=True)
    assert layer.statistics(sized, cut) is None
    with pytest.raises(InputError):
        layer.statistics(sized, cut._replace(evaluating=False))


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [
    ("batch", "channel"), ("zero1", "unequal height"), ("batch x channel", "zero1 of many"),
    ("stages", "zero1"),
])  # fmt: skip
def test_another_plan_takes_up_their_bits(first: str, second: str, tmp_path: Path) -> None:
    model = residual(None)
    one, two = executor_of(model, first, 2), executor_of(model, second, 0)
    optimizer = RECIPE.updates
    state = checkpoint.State.empty(model, 2, 0, Precision.of("float64"), optimizer, RECIPE.lr)
    for rank in one.ranks:
        for piece in checkpoint.pieces(rank):
            state.put(piece)
    state.save(tmp_path / "step-000002.pt")
    assert set(state.parameters) - set(state.state) == set(AVERAGES)
    loaded = checkpoint.load(tmp_path / "step-000002.pt", model, optimizer)
    for other in two.ranks:
        checkpoint.restore(other, loaded)
    for name, value in one.parameters().items():
        assert torch.equal(value, two.parameters()[name]), name
    one.step(2)
    two.step(2)
    for average in AVERAGES:
        difference = one.parameters()[average] - two.parameters()[average]
        assert difference.abs().max() < 1e-12


# -- kinds of one's own, and what is refused -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Centre(Layer):
    """Less the mean of each batch in training, less its running average in evaluation."""

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        average = RunningAverage(0.5)
        return (ParameterSpec("mean", (inputs[0].channels,), Constant(0.0), update=average),)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return (sized.output.whole,)

    def uncut(self, sized: SizedLayer, axis: str) -> str:
        return "it is computed whole"

    def compute(self, part: LayerPart, inputs: Any, parameters: Any, draw: Draw | None) -> Tensor:
        (x,), (mean,) = inputs, parameters
        if draw is None:
            return x - mean.detach()  # type: ignore[no-any-return]
        share = x.detach().sum(0) / draw.batch
        return running_torch.tell(x - 1.0, [mean], [share])


def test_a_kind_of_ones_own_has_running_averages() -> None:
    model = Model("own", (6,), [Centre(name="centre"), Linear(name="fc", features=4)])
    feed = RandomFeed(model, BATCH)
    images = feed.images(0, torch.arange(BATCH))
    for entry in ("ranks: [0], split: none", "ranks: [0, 1, 2], split: batch"):
        program = small_program(model, f"layers: all, {entry}", batch=BATCH)
        executor = LocalExecutor(program, feed, RECIPE)
        executor.step(0)
        assert torch.allclose(executor.parameters()["centre.mean"].float(), images.mean(0) / 2)


def test_a_tied_average_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Tied(Centre):
        def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
            average = RunningAverage()
            return (ParameterSpec("a", (6,), Constant(0.0), update=average, tied_to="fc.bias"),)

    with pytest.raises(InputError, match="update of a: found RunningAverage"):
        Model("own", (6,), [Tied(name="centre"), Linear(name="fc", features=6)])


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1])
def test_a_momentum_that_is_none_is_refused(momentum: float) -> None:
    with pytest.raises(InputError, match="momentum: found .* allowed: .*above 0, up to 1"):
        BatchNorm(name="bn", momentum=momentum)


def test_the_variance_of_one_value_is_refused() -> None:
    layers = [BatchNorm(name="bn", group=1), Linear(name="fc", features=4)]
    with pytest.raises(InputError, match="bn: the variance of one value a channel") as caught:
        small_program(Model("one", (6,), layers), "layers: all, ranks: [0], split: none")
    assert caught.value.location == "t.yaml:6, placement[0]"
