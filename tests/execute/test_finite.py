"""Where a loss stopped being finite: the layer is the first, the rank is its own."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from orchestrator.execute.finite import (
    Diverged,
    Divergence,
    NonFinite,
    Where,
    bad_parameters,
    earliest,
)
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.models import Linear, Model, RMSNorm, SizedLayer
from orchestrator.models.layer import Cut, Statistics
from orchestrator.models.model import Recipe
from orchestrator.program import Program
from tests.program.small import LENET, small_program

RECIPE = Recipe(lr=0.01)
STAGES = (
    "layers: conv1..pool2, ranks: [0], split: none", "layers: fc3..fc5, ranks: [1], split: none",
)  # fmt: skip
COLUMNS = (
    "layers: conv1..relu4, ranks: [0, 1], split: channel",
    "layers: fc5, ranks: [0], split: none",
)
DATA = ("layers: conv1..fc5, ranks: [0, 1], split: batch",)
TURNS = (
    "layers: conv1..pool2, ranks: [0, 1], split: batch",
    "layers: fc3..relu4, ranks: [0, 1], split: channel, exchange: broadcast",
    "layers: fc5, ranks: [0], split: none",
)
PLANS: dict[str, tuple[tuple[str, ...], str]] = {
    "one": (("layers: conv1..fc5, ranks: [0], split: none",), ""),
    "columns": (COLUMNS, ""),
    "data": (DATA, ""),
    "sharded": (DATA, "optimizer_sharding: zero1"),
    "turns": (TURNS, "training: {layer_batch: {fc3..fc5: 2}}"),
    "gpipe": (STAGES, "n_microbatches: 4"),
    "recomputed": (STAGES, "n_microbatches: 4\nactivation_checkpoint: always"),
    "1f1b": (STAGES, "n_microbatches: 4\nschedule: 1F1B"),
    "halves": (STAGES, "n_microbatches: 4\nschedule: InterleavedZeroBubble"),
    "replicas": (STAGES, "replicas: 2\nn_microbatches: 2"),
}


def program_of(name: str) -> Program:
    entries, more = PLANS[name]
    return small_program(LENET, *entries, batch=8, more=more)


def executor_of(program: Program, feed: RandomFeed | None = None) -> LocalExecutor:
    return LocalExecutor(program, feed or RandomFeed(LENET, program.global_batch), RECIPE)


def broken(executor: LocalExecutor, layer: str, value: float) -> int:
    """Put a value into the last weight of a layer, on the last rank that has one; which is told."""
    for rank in reversed(executor.ranks):
        for parameters in rank.parameters.values():
            for slot, weight in zip(parameters.slots, parameters.weights, strict=True):
                if slot.layer.name == layer and slot.decays:
                    weight.detach().flatten()[-1] = value
                    return rank.rank
    raise AssertionError(layer)


def weights(executor: LocalExecutor) -> list[Tensor]:
    return [
        weight.detach().clone()
        for rank in executor.ranks
        for parameters in rank.parameters.values()
        for weight in parameters.weights
    ]


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc4"])
@pytest.mark.parametrize("name", PLANS)
def test_a_layer_with_a_weight_that_is_no_number_is_named(name: str, layer: str) -> None:
    executor = executor_of(program_of(name))
    executor.step(0)
    rank = broken(executor, layer, float("nan"))
    before = weights(executor)
    with pytest.raises(Diverged) as caught:
        executor.step(1)
    told = caught.value.divergence
    assert (told.ended, told.of_loss) == (1, True)
    assert told.found is not None
    assert (told.found.layer, told.found.where) == (layer, Where.PARAMETERS)
    assert told.found.rank == rank
    assert f"step 2: the loss on rank {told.rank} is not finite" in str(caught.value)
    # No weight of any rank was changed by it: what is found is what the forward used.
    for a, b in zip(before, weights(executor), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("name", PLANS)
def test_a_layer_whose_output_leaves_float32_is_named(name: str) -> None:
    """Weights of 3e38 are finite, and the sum of two such products is not."""
    executor = executor_of(program_of(name))
    for rank in executor.ranks:
        for parameters in rank.parameters.values():
            for slot, weight in zip(parameters.slots, parameters.weights, strict=True):
                if slot.layer.name == "conv2":
                    weight.detach().fill_(3e38)
    assert bad_parameters(executor.ranks[0]) is None
    with pytest.raises(Diverged) as caught:
        executor.step(0)
    found = caught.value.divergence.found
    assert found is not None
    assert (found.layer, found.where) == ("conv2", Where.OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Named(RMSNorm):
    """Its moments have a name of their own, of which its own is no part."""

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        found = super().statistics(sized, cut)
        if found is None:
            return None
        gather = replace(found.gather, name="means.of-channels")
        apply = replace(found.apply, inputs=(*sized.sources, gather.name))
        return found._replace(gather=gather, apply=apply)


def test_a_half_is_told_as_the_layer_that_it_is_of() -> None:
    """The layer's name was once what stood before the last dot of the half's."""
    layers = [Linear(name="a", features=4), Named(name="norm"), Linear(name="c", features=3)]
    model = Model("halved", (6,), layers)
    program = small_program(
        model,
        "layers: a..norm, ranks: [0, 1], split: channel",
        "layers: c, ranks: [0, 1], split: batch",
    )
    executor = LocalExecutor(program, RandomFeed(model, program.global_batch), RECIPE)
    for rank in executor.ranks:
        for parameters in rank.parameters.values():
            for slot, weight in zip(parameters.slots, parameters.weights, strict=True):
                if slot.layer.name == "a":  # the sum of two such values leaves float32
                    weight.detach().fill_(0.0 if slot.decays else 3e38)
    with pytest.raises(Diverged) as caught:
        executor.step(0)
    found = caught.value.divergence.found
    assert found is not None
    assert found.layer == "norm"


def test_images_that_are_no_numbers_are_told_as_such() -> None:
    class Broken(RandomFeed):
        def images(self, step: int, samples: Tensor) -> Tensor:
            found = super().images(step, samples).clone()
            found[samples == 5] = float("nan")
            return found

    program = program_of("replicas")
    executor = executor_of(program, Broken(LENET, program.global_batch))
    with pytest.raises(Diverged, match="the images that rank 2 reads are not finite"):
        executor.step(0)


def test_velocities_count_as_parameters() -> None:
    """Of a shard, too: the next update would spread them."""
    for name in ("data", "sharded"):
        executor = executor_of(program_of(name))
        executor.step(0)
        rank = executor.ranks[1]
        last = list(rank.parameters.values())[-1]
        last.state["momentum"][-1].view(-1)[-1] = float("inf")
        found = bad_parameters(rank)
        assert found is not None
        assert (found.layer, found.rank) == ("fc5", 1)


def test_the_earliest_is_first_in_the_forward() -> None:
    late = NonFinite(7, Where.INPUT, "fc4", 0)
    output = NonFinite(3, Where.OUTPUT, "conv2", 1)
    weight = NonFinite(3, Where.PARAMETERS, "conv2", 2)
    assert earliest([late, None, output, weight]) == weight
    assert earliest([None]) is None


def test_it_survives_the_way_to_the_driver() -> None:
    error = Diverged(Divergence(1, 6, True, NonFinite(3, Where.OUTPUT, "conv2", 1)))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.divergence == error.divergence
