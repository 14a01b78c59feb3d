"""Checkpoints: by layer, from whatever pieces the ranks hold, and never half a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.reference import Reference
from orchestrator.execute.verify import RandomFeed
from orchestrator.models import Model
from orchestrator.models.model import Recipe
from orchestrator.program import Program
from orchestrator.train import checkpoint
from tests.program.small import LENET, LINEAR, small_program

COLUMNS = (
    "layers: conv1..relu4, ranks: [0, 1], split: channel",
    "layers: fc5, ranks: [0], split: none",
)
DATA = ("layers: conv1..fc5, ranks: 0..2, split: batch",)
INPUT = (
    "layers: conv1..relu3, ranks: [0, 1], split: channel",
    "layers: fc4..relu4, ranks: [0, 1], split: input",
    "layers: fc5, ranks: [1], split: none",
)
STAGES = (
    "layers: conv1..pool2, ranks: [0], split: none",
    "layers: fc3..fc5, ranks: [1], split: none",
)
ZERO1 = "optimizer_sharding: zero1"
PLANS: dict[str, tuple[tuple[str, ...], str]] = {
    "columns": (COLUMNS, ""),
    "uneven columns": (("layers: conv1..fc5, ranks: [0, 1], split: channel, shares: [1, 3]",), ""),
    "data": (DATA, ""),
    "sharded data": (DATA, ZERO1),
    "sharded columns": (COLUMNS, f"replicas: 2\n{ZERO1}"),
    "input": (INPUT, ""),
    "stages": (STAGES, "replicas: 3"),
}


def program_of(name: str) -> Program:
    entries, more = PLANS[name]
    model = LENET
    if name == "uneven columns":  # four classes, so that fc5 divides too
        entries, model = ("layers: a..c, ranks: [0, 1], split: channel, shares: [1, 3]",), LINEAR
    return small_program(model, *entries, batch=12, more=more)


def executor_of(program: Program, seed: int = 1, steps: int = 0) -> LocalExecutor:
    feed = RandomFeed(program.model, program.global_batch)
    executor = LocalExecutor(program, feed, Recipe(lr=0.1, seed=seed))
    for step in range(steps):
        executor.step(step)
    return executor


def gathered(executor: LocalExecutor) -> checkpoint.State:
    state = checkpoint.State.empty(executor.program.model, 2, 1, torch.float32)
    for rank in executor.ranks:
        for piece in checkpoint.pieces(rank):
            state.put(piece)
    return state


@pytest.mark.parametrize("name", PLANS)
def test_every_value_comes_from_one_rank(name: str, tmp_path: Path) -> None:
    """So the file is as large as the model, whatever the number of ranks; saving counts it."""
    state = gathered(executor_of(program_of(name), steps=1))
    for kind, tensors in (("weights", state.weights), ("velocities", state.velocities)):
        for key, tensor in tensors.items():
            assert state.filled[kind, key] == tensor.numel(), (kind, key)
            assert not tensor.isnan().any(), (kind, key)
    state.save(tmp_path / "checkpoints" / "step-000002.pt")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002.pt"]


@pytest.mark.parametrize("name", PLANS)
def test_what_is_saved_comes_back_to_every_rank(name: str, tmp_path: Path) -> None:
    program = program_of(name)
    trained, other = executor_of(program, steps=2), executor_of(program, seed=9)
    state = gathered(trained)
    file = tmp_path / "step-000002.pt"
    state.save(file)
    loaded = checkpoint.load(file, program.model)
    assert (loaded.model, loaded.step, loaded.seed) == (program.model.name, 2, 1)
    for rank in other.ranks:
        checkpoint.restore(rank, loaded)
    for one, two in zip(trained.ranks, other.ranks, strict=True):
        for segment, parameters in one.parameters.items():
            others = two.parameters[segment]
            pairs = [
                *zip(parameters.weights, others.weights, strict=True),
                *zip(parameters.velocities, others.velocities, strict=True),
            ]
            for expected, found in pairs:
                whole = min(expected.numel(), parameters.total)  # a last shard ends in padding
                assert torch.equal(expected.flatten()[:whole], found.flatten()[:whole])
    assert [trained.step(step) for step in (2, 3)] == [other.step(step) for step in (2, 3)]


def test_the_weights_are_those_of_the_whole_network() -> None:
    executor = executor_of(program_of("input"), steps=1)
    state = gathered(executor)
    for name, weight in executor.parameters().items():
        assert torch.equal(state.weights[name].double(), weight), name


def test_a_piece_left_out_is_never_saved(tmp_path: Path) -> None:
    executor = executor_of(program_of("columns"))
    state = checkpoint.State.empty(LENET, 0, 1, torch.float32)
    for piece in checkpoint.pieces(executor.ranks[0]):
        state.put(piece)
    with pytest.raises(AssertionError, match="values"):
        state.save(tmp_path / "step-000000.pt")
    assert list(tmp_path.iterdir()) == []


# -- which file -----------------------------------------------------------------------------------


def test_the_newest_is_the_one_of_most_steps(tmp_path: Path) -> None:
    """By number: ``step-1000000`` sorts before ``step-999999`` as text, and once came first."""
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-000009.pt", "step-999999.pt", "step-1000000.pt", "step-1000002.part"):
        (tmp_path / "checkpoints" / name).touch()
    assert checkpoint.newest(tmp_path).name == "step-1000000.pt"


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "any-name"
    file.touch()
    assert checkpoint.newest(file) == file


@pytest.mark.parametrize("folder", ["", "checkpoints", "missing"])
def test_a_folder_without_checkpoints_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="has no checkpoint to resume from") as caught:
        checkpoint.newest(tmp_path / folder)
    assert caught.value.remedy


# -- bad files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    state = gathered(executor_of(program_of("columns")))
    return {
        "schema": 1, "model": "lenet5", "step": 2, "seed": 1,
        "weights": state.weights, "velocities": state.velocities,
    }  # fmt: skip


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def wrong_shape(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: torch.zeros(3)}


DAMAGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "another schema": ("schema", lambda _: 2, "checkpoint schema 2; this release reads 1"),
    "no weights": ("weights", lambda _: {}, "conv1.weight is missing in the checkpoint's weights"),
    "a weight left out": ("weights", without("fc4.weight"), "fc4.weight is missing"),
    "a bias left out": ("weights", without("fc5.bias"), "fc5.bias is missing"),
    "another weight": ("weights", wrong_shape("conv2.weight"), r"conv2.weight is \(3,\)"),
    "another bias": ("weights", wrong_shape("conv2.bias"), r"conv2.bias is \(3,\)"),
    "no velocities": ("velocities", lambda _: {}, "is missing in the checkpoint's velocities"),
    "a velocity left out": (
        "velocities", without("fc5.bias"), "fc5.bias is missing in the checkpoint's velocities"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_checkpoint_that_does_not_fit_is_refused(
    case: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    """What is missing is told when the file is read, before any worker starts."""
    key, damage, says = DAMAGES[case]
    file = tmp_path / "step-000002.pt"
    torch.save({**whole, key: damage(whole[key])}, file)
    with pytest.raises(InputError, match=says) as caught:
        checkpoint.load(file, LENET)
    assert caught.value.location == str(file)
    assert caught.value.remedy


def test_the_untouched_file_is_read(whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "step-000002.pt"
    torch.save(whole, file)
    assert checkpoint.load(file, LENET).step == 2


def test_another_model_is_refused(whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "step-000002.pt"
    torch.save(whole, file)
    wide = Model("wide", LINEAR.input_shape, LINEAR.declared)
    with pytest.raises(InputError, match="model lenet5") as caught:
        checkpoint.load(file, wide)
    assert "wide" in str(caught.value)


def junk(file: Path) -> None:
    file.write_text("junk")


def empty(file: Path) -> None:
    file.touch()


def cut_short(file: Path) -> None:
    torch.save({"schema": 1, "weights": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-200])


def another_program(file: Path) -> None:
    torch.save({"state_dict": {}}, file)


def a_tensor(file: Path) -> None:
    torch.save(torch.zeros(3), file)


def code(file: Path) -> None:
    """A pickle that would run a function when it is loaded."""
    torch.save({"schema": 1, "step": print}, file)


@pytest.mark.parametrize("make", [junk, empty, cut_short, another_program, a_tensor, code])
def test_a_file_that_is_no_checkpoint_is_refused_in_our_words(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """torch's own message tells how to load files that one should not trust."""
    file = tmp_path / "step-000002.pt"
    make(file)
    with pytest.raises(InputError, match="not a checkpoint of this program") as caught:
        checkpoint.load(file, LENET)
    assert "torch" not in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read it: No such file"):
        checkpoint.load(tmp_path / "missing.pt", LENET)


def test_another_rate_rescales_the_velocity_and_not_the_step_it_stands_for() -> None:
    """The rate is inside the 2012 velocity: v <- 0.9 v - lr g. A run that goes on with a tenth of
    the rate must not shrink what it has gathered."""
    recipe = Recipe(lr=0.1, seed=1)
    feed = RandomFeed(LENET, 8)
    program = small_program(LENET, "layers: conv1..fc5, ranks: [0], split: none",
                            batch=8, dtype="float64")  # fmt: skip
    executor = LocalExecutor(program, feed, recipe)
    reference = Reference(LENET, feed, recipe, global_batch=8, dtype="float64", update_examples={})
    for step in range(4):
        if step == 2:
            reference.recipe = replace(recipe, lr=0.01)
            executor.ranks[0].recipe = reference.recipe
        executor.step(step)
        reference.step(step)
    for name, value in executor.parameters().items():
        torch.testing.assert_close(value, reference.weights[name].detach(), rtol=1e-9, atol=1e-12)
