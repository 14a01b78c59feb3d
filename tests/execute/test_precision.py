"""Four number formats: what is held, computed, summed and sent in which, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

from orchestrator.errors import InputError
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.parameters import SegmentParameters
from orchestrator.execute.reference import Reference
from orchestrator.execute.rounding_band import SAFETY, changes_since, lengths, measured_band
from orchestrator.execute.verify import RandomFeed, verify
from orchestrator.models.model import Recipe
from orchestrator.plan import Plan, read_plan
from orchestrator.program import Precision, Program, compile_plan
from orchestrator.program.ledger import differences, edges
from orchestrator.program.ops import ALL_GATHER, EXCHANGE, REDUCE_SCATTER
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import recipe_of
from tests.execute.test_optimizers import NET, OPTIMIZERS, SHARED, SPLITS, plan_of

BFLOAT16 = Precision("bfloat16", "bfloat16", "float32", "bfloat16")


def with_precision(split: str, precision: str, sharding: str = "none") -> Plan:
    text = plan_of(split, "sgd2012", sharding).to_yaml()
    return read_plan(text.replace("training:\n", f"training:\n  precision: {precision}\n"))


def compiled(plan: Plan) -> Program:
    return compile_plan(plan, NET, dtype=precision_of(plan))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("float32", Precision("float32", "float32", "float32", "float32")),
        ("float64", Precision("float64", "float64", "float64", "float64")),
        ("tfloat32", Precision("float32", "tfloat32", "float32", "float32")),
        ("bfloat16", BFLOAT16),
        ("{compute: bfloat16}", BFLOAT16),
        ("{compute: bfloat16, send: float32}", replace(BFLOAT16, send="float32")),
        ("{reduce: bfloat16}", Precision("float32", "float32", "bfloat16", "float32")),
    ],
)  # fmt: skip
def test_what_a_plan_says(said: str, expected: Precision) -> None:
    plan = with_precision("one", said)
    assert precision_of(plan) == expected
    assert read_plan(plan.to_yaml()) == plan


@pytest.mark.parametrize(
    ("said", "place", "says", "remedy"),
    [
        ("float8", "", "found 'float8'; allowed: float32, tfloat32, float16, fl", "float64?"),
        ("{comput: float32}", ".comput", "unknown key 'comput'; allowed: parameters, ", "compute?"),
        ("{send: tfloat32}", ".send", "found 'tfloat32'; allowed: float32, float16", "float32?"),
        ("{reduce: 16}", ".reduce", "found 16; allowed: float32, float16", "reduce: float32"),
        (
            "{parameters: float32, compute: bfloat16}", ".parameters",
            "found parameters: float32 beside compute: bfloat16; allowed: the format of compute",
            "parameters: bfloat16, or leave it out",
        ),
        ("{send: float64}", ".send", "found send: float64 beside compute: fl", "send: float32"),
    ],
)  # fmt: skip
def test_what_is_refused(said: str, place: str, says: str, remedy: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        precision_of(with_precision("one", said))
    assert f"training.precision{place}" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("sharding", ["none", "zero1"])
def test_every_tensor_has_its_format(sharding: str) -> None:
    program = compiled(with_precision("batch", "bfloat16", sharding))
    recipe = recipe_of(plan_of("one", "sgd2012"), NET)
    rank = LocalExecutor(program, RandomFeed(NET, 12), recipe).ranks[1]
    for parameters in rank.parameters.values():
        assert {w.dtype for w in parameters.weights} == {torch.bfloat16}
        assert {t.value.dtype for t in parameters.targets} == {torch.float32}
        assert {m.dtype for m in parameters.state["momentum"]} == {torch.float32}
        assert parameters.flat_gradient is not None
        assert parameters.flat_gradient.dtype == torch.float32


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "precision", ["bfloat16", "{compute: bfloat16, send: float32, reduce: bfloat16}"]
)
def test_bytes_are_those_of_the_formats(split: str, precision: str) -> None:
    sharding = "zero1" if split in SHARED else "none"
    program, whole = (compiled(with_precision(split, p, sharding)) for p in (precision, "float32"))
    sent, reduced = (4, 2) if "send" in precision else (2, 4)
    for a, b in zip(program.ops(), whole.ops(), strict=True):
        if a.lane == EXCHANGE:
            assert a.bytes * 4 == b.bytes * sent, a
        elif a.kind == REDUCE_SCATTER:
            assert a.bytes * 4 == b.bytes * reduced, a
        elif a.kind == ALL_GATHER:
            assert a.bytes * 2 == b.bytes, a
    assert edges(program).total() > 0 or program.world_size == 1
    recipe = recipe_of(plan_of(split, "sgd2012"), NET)
    executor = LocalExecutor(program, RandomFeed(NET, 12), recipe)
    executor.step(0)
    assert differences(program, 1, executor.sent(), executor.handed()) == []


def test_masters_keep_what_the_weights_round_away() -> None:
    """Weights in bfloat16 without masters do not move at a low rate: nine in ten stay."""
    plan = with_precision("one", "bfloat16")
    recipe = recipe_of(plan, NET)
    slow = replace(recipe, lr=1e-5)
    executor = LocalExecutor(compiled(plan), RandomFeed(NET, 12), slow)
    before = executor.parameters()
    executor.step(0)
    after = executor.parameters()
    weight = "conv2.weight"
    assert float((after[weight] != before[weight]).double().mean()) > 0.95
    held = executor.ranks[0].parameters[0].named(weight).detach().double()
    assert torch.equal(held, after[weight].to(torch.bfloat16).double())
    assert float((held != before[weight].to(torch.bfloat16).double()).double().mean()) < 0.1


@pytest.mark.parametrize("optimizer", ["sgd2012", "adamw", "lars"])
@pytest.mark.parametrize("split", SPLITS)
def test_verify_passes_what_is_right(split: str, optimizer: str) -> None:
    if optimizer == "lars" and split in ("channel", "input"):
        optimizer = "nesterov"
    plan = plan_of(split, optimizer, "zero1" if split in SHARED and optimizer != "lars" else "none")
    program = compile_plan(plan, NET, dtype="bfloat16")
    slices = {"fc3": 4, "relu3": 4, "fc4": 4, "loss": 4} if split == "slices" else {}
    verdict = verify(program, recipe_of(plan, NET), update_examples=slices, steps=3)
    assert verdict.passed, verdict.problems


@pytest.mark.slow
def test_the_band_is_what_right_plans_need_and_not_much_more() -> None:
    """Where the factor on the measured spread comes from: the furthest that right plans are from
    one device, against the furthest that its runs again are."""
    furthest = [0.0, 0.0]
    for optimizer, steps, seed in product(("sgd2012", "adamw"), (1, 3), range(6)):
        recipe = replace(recipe_of(plan_of("one", optimizer), NET), seed=seed)
        for n, ratio in enumerate(_furthest(optimizer, recipe, steps)):
            furthest[n] = max(furthest[n], ratio)
    parameters, loss = furthest
    print(f"furthest: parameters {parameters:.2f}, loss {loss:.2f}; allowed {SAFETY}")
    assert SAFETY / 4 < parameters < SAFETY / 2
    assert SAFETY / 4 < loss < SAFETY / 2


def _furthest(optimizer: str, recipe: Recipe, steps: int) -> tuple[float, float]:
    """Of parameters that have a gradient, and of the loss, over the widest of the runs again."""
    feed = RandomFeed(NET, 12, recipe.seed)
    whole = Reference(NET, feed, recipe, global_batch=12, dtype=BFLOAT16, update_examples={})
    start = {name: w.detach().clone() for name, w in whole.weights.items()}
    losses = [whole.step(step) for step in range(steps)]
    changes = changes_since(start, whole.weights)
    one = compile_plan(plan_of("one", optimizer), NET, dtype="bfloat16")
    band = measured_band(one, feed, recipe, {}, losses, changes)
    largest = max(float(change.norm()) for change in changes.values())
    moved = [name for name, change in changes.items() if change.norm() > 0.01 * largest]
    parameters = loss = 0.0
    for split in ("one", "batch", "height", "channel", "input", "replicas"):
        program = compile_plan(plan_of(split, optimizer), NET, dtype="bfloat16")
        executor = LocalExecutor(program, feed, recipe)
        ours = [executor.step(step) for step in range(steps)]
        apart = lengths(changes_since(start, executor.parameters()), changes)
        off = max(abs(a - b) for a, b in zip(ours, losses, strict=True))
        loss = max(loss, SAFETY * off / band.loss)
        parameters = max([parameters, *(SAFETY * apart[n] / band.changes[n] for n in moved)])
    return parameters, loss


def lose_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SegmentParameters.step

    def wrong(self: SegmentParameters, *options: float) -> None:
        self.target_gradients()[0].mul_(0.5)
        step(self, *options)

    monkeypatch.setattr(SegmentParameters, "step", wrong)


def forget_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update goes on, and the forward never sees it."""
    monkeypatch.setattr(SegmentParameters, "take_masters", lambda self: None)


def lose_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    source = RankInterpreter._source
    monkeypatch.setattr(RankInterpreter, "_source", lambda *message: 0.7 * source(*message))


@pytest.mark.parametrize("sabotage", [lose_a_gradient, forget_the_masters, lose_messages])
def test_verify_finds_what_is_wrong(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    plan = plan_of("channel", "sgd2012")
    program = compile_plan(plan, NET, dtype="bfloat16")
    verdict = verify(program, recipe_of(plan, NET), update_examples={}, steps=3)
    assert not verdict.passed
    assert any("rounding explains" in problem for problem in verdict.problems)


def test_every_optimizer_is_among_those_verified() -> None:
    assert {"sgd2012", "adamw", "lars", "nesterov"} <= set(OPTIMIZERS)
