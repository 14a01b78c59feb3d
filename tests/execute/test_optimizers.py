"""Every optimizer under every kind of split trains as torch's own does on one device."""

from __future__ import annotations

import pytest
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.parameters import SegmentParameters
from orchestrator.execute.reference import Reference
from orchestrator.execute.verify import RandomFeed, verify
from orchestrator.models import BatchNorm, Conv, GlobalAveragePool, Linear, Model, ReLU
from orchestrator.models.model import Recipe
from orchestrator.plan import Plan, read_plan
from orchestrator.program import compile_plan
from orchestrator.program.placement import update_examples
from orchestrator.program.resolve import recipe_of
from tests.program.small import small_plan

NET = Model(
    "net",
    (2, 6, 6),
    [
        Conv(name="conv1", channels=8, kernel=3, weight_std=0.3),
        BatchNorm(name="norm1", group=2),
        ReLU(name="relu1"),
        Conv(name="conv2", channels=8, kernel=3, weight_std=0.3),
        GlobalAveragePool(name="pool2"),
        Linear(name="fc3", features=12, weight_std=0.3),
        ReLU(name="relu3"),
        Linear(name="fc4", features=5, weight_std=0.3),
    ],
)
ALL = "layers: all, ranks: {}, split: {}"
SPLITS: dict[str, tuple[tuple[str, ...], str]] = {
    "one": ((ALL.format("[0]", "none"),), ""),
    "batch": ((ALL.format("0..2", "batch"),), ""),
    "height": (
        (
            "layers: conv1..conv2, ranks: [0, 1], split: height",
            "layers: pool2..fc4, ranks: [0, 1], split: batch",
        ),
        "",
    ),
    "channel": (
        (
            "layers: conv1..relu3, ranks: [0, 1], split: channel",
            "layers: fc4, ranks: [0], split: none",
        ),
        "",
    ),
    "input": (
        (
            "layers: conv1..pool2, ranks: [0, 1], split: channel",
            "layers: fc3..fc4, ranks: [0, 1], split: input",
        ),
        "",
    ),
    "replicas": (
        (
            "layers: conv1..pool2, ranks: [0], split: none",
            "layers: fc3..fc4, ranks: [1], split: none",
        ),
        "n_microbatches: 3\nschedule: 1F1B\nreplicas: 2",
    ),
    "slices": ((ALL.format("[0]", "none"),), ""),
}
OPTIMIZERS = {
    "sgd2012": "{name: sgd2012, momentum: 0.8, weight_decay: 0.1}",
    "sgd": "{name: sgd, momentum: 0.8, weight_decay: 0.1, dampening: 0.3}",
    "nesterov": "{name: sgd, momentum: 0.8, weight_decay: 0.1, nesterov: true}",
    "adamw": "{name: adamw, betas: [0.8, 0.95], eps: 1.0e-3, weight_decay: 0.1}",
    "lars": "{name: lars, momentum: 0.8, weight_decay: 0.1, trust: 0.5}",
}
STEPS = 10


def plan_of(split: str, optimizer: str, sharding: str = "none") -> Plan:
    entries, more = SPLITS[split]
    sliced = ", layer_batch: {fc3..fc4: 4}" if split == "slices" else ""
    training = f"training: {{lr: 0.05, optimizer: {OPTIMIZERS[optimizer]}{sliced}}}"
    text = f"{more}\noptimizer_sharding: {sharding}\n{training}\n"
    return small_plan(*entries, batch=12, more=text)


def trained(
    plan: Plan, dtype: str = "float64", steps: int = STEPS
) -> tuple[list[float], dict[str, Tensor]]:
    program = compile_plan(plan, NET, dtype=dtype)
    executor = LocalExecutor(program, RandomFeed(NET, 12), recipe_of(plan, NET))
    losses = [executor.step(step) for step in range(steps)]
    return losses, executor.parameters()


WHOLE = ("one", "batch", "height", "replicas", "slices")  # each rank has all of a parameter
SHARED = ("batch", "height", "replicas")
LEGAL = [
    *((split, name, "none") for split in SPLITS for name in OPTIMIZERS if name != "lars"),
    *((split, name, "zero1") for split in SHARED for name in OPTIMIZERS if name != "lars"),
    *((split, "lars", "none") for split in WHOLE),
]


@pytest.mark.parametrize(("split", "optimizer", "sharding"), LEGAL)
def test_ten_steps_are_those_of_one_device(split: str, optimizer: str, sharding: str) -> None:
    plan = plan_of(split, optimizer, sharding)
    recipe = recipe_of(plan, NET)
    losses, weights = trained(plan)
    updates = update_examples(plan, NET)
    start, _ = one_device(recipe, updates, steps=0)
    reference, expected = one_device(recipe, updates, steps=STEPS)
    assert losses == pytest.approx(expected, rel=1e-12)
    changes = {n: float((w - start[n]).abs().max()) for n, w in reference.items()}
    assert len([n for n, change in changes.items() if change > 1e-3]) >= len(changes) - 2
    for name, weight in reference.items():
        # a bias before a norm has no gradient but what rounding leaves
        size = max(changes[name], 0.1 * max(changes.values()))
        assert float((weights[name] - weight).abs().max()) < 1e-12 * size, name


def one_device(
    recipe: Recipe, updates: dict[str, int], steps: int
) -> tuple[dict[str, Tensor], list[float]]:
    found = Reference(
        NET, RandomFeed(NET, 12), recipe, global_batch=12, dtype="float64", update_examples=updates
    )
    losses = [found.step(step) for step in range(steps)]
    return {name: weight.detach() for name, weight in found.weights.items()}, losses


@pytest.mark.parametrize("split", ["channel", "input"])
def test_lars_is_refused_where_no_rank_has_a_whole_parameter(split: str) -> None:
    """The norm of a part is not that of the layer, and would be another optimizer."""
    with pytest.raises(InputError, match=r"whole parameter, and the placement cuts conv1.weight"):
        trained(plan_of(split, "lars"))


def test_lars_is_refused_where_shards_cut_parameters() -> None:
    with pytest.raises(InputError, match="a shard has a part of it; allowed: none") as caught:
        trained(plan_of("batch", "lars", "zero1"))
    assert "optimizer_sharding" in caught.value.location


@pytest.mark.parametrize("split", ["one", "channel"])
def test_sharding_is_refused_where_nothing_is_held_twice(split: str) -> None:
    """It passed, and nothing was sharded."""
    with pytest.raises(InputError, match="found zero1, and no two ranks hold the same") as caught:
        trained(plan_of(split, "sgd2012", "zero1"))
    assert "replicas: 2" in caught.value.remedy


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_verify_passes_what_is_right(optimizer: str, dtype: str) -> None:
    """adamw makes a step of the rate's size of a gradient that is nothing but rounding, as that of
    a bias before a batch norm is: two orders of its sum give steps that have nothing in common."""
    plan = read_plan(plan_of("batch", optimizer).to_yaml().replace("eps: 0.001", "eps: 1.0e-8"))
    program = compile_plan(plan, NET, dtype=dtype)
    verdict = verify(program, recipe_of(plan, NET), update_examples={}, steps=3)
    assert verdict.passed, verdict.problems


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_verify_finds_a_wrong_gradient(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """adamw hides a factor on a gradient; not that of one part of it."""
    step = SegmentParameters.step

    def wrong(self: SegmentParameters, *options: float) -> None:
        for gradient in self.target_gradients():
            gradient.view(-1)[0] += 1e-3
        step(self, *options)

    monkeypatch.setattr(SegmentParameters, "step", wrong)
    plan = plan_of("batch", optimizer)
    program = compile_plan(plan, NET, dtype="float64")
    assert not verify(program, recipe_of(plan, NET), update_examples={}, steps=2).passed
