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
from orchestrator.optimizers import AdamW, Sgd2012
from orchestrator.program import Precision, Program
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
ADAMW = "training: {optimizer: adamw}"
PLANS: dict[str, tuple[tuple[str, ...], str]] = {
    "columns": (COLUMNS, ""),
    "uneven columns": (("layers: conv1..fc5, ranks: [0, 1], split: channel, shares: [1, 3]",), ""),
    "data": (DATA, ""),
    "sharded data": (DATA, ZERO1),
    "sharded columns": (COLUMNS, f"replicas: 2\n{ZERO1}"),
    "input": (INPUT, ""),
    "stages": (STAGES, "replicas: 3"),
    "adamw, columns": (COLUMNS, ADAMW),
    "adamw, sharded columns": (COLUMNS, f"replicas: 2\n{ZERO1}\n{ADAMW}"),
    "adamw, sharded data, bfloat16": (DATA, f"{ZERO1}\n{ADAMW}"),
    "columns, bfloat16": (COLUMNS, ""),
}


def program_of(name: str) -> Program:
    entries, more = PLANS[name]
    model = LENET
    if name == "uneven columns":  # four classes, so that fc5 divides too
        entries, model = ("layers: a..c, ranks: [0, 1], split: channel, shares: [1, 3]",), LINEAR
    dtype = "bfloat16" if "bfloat16" in name else "float32"
    return small_program(model, *entries, batch=12, more=more, dtype=dtype)


def executor_of(program: Program, seed: int = 1, steps: int = 0) -> LocalExecutor:
    feed = RandomFeed(program.model, program.global_batch)
    recipe = Recipe(lr=0.1, seed=seed, optimizer=program.optimizer)
    executor = LocalExecutor(program, feed, recipe)
    for step in range(steps):
        executor.step(step)
    return executor


def gathered(executor: LocalExecutor) -> checkpoint.State:
    program = executor.program
    state = checkpoint.State.empty(program.model, 2, 1, program.precision, program.optimizer)
    for rank in executor.ranks:
        for piece in checkpoint.pieces(rank):
            state.put(piece)
    return state


@pytest.mark.parametrize("name", PLANS)
def test_every_value_comes_from_one_rank(name: str, tmp_path: Path) -> None:
    """So the file is as large as the model, whatever the number of ranks; saving counts it."""
    state = gathered(executor_of(program_of(name), steps=1))
    for name, parameter in state.parameters.items():
        for kind, tensor in ((checkpoint.PARAMETER, parameter), *state.state[name].items()):
            assert state.filled[name, kind] == tensor.numel(), (kind, name)
            assert not tensor.isnan().any(), (kind, name)
    state.save(tmp_path / "checkpoints" / "step-000002.pt")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002.pt"]


@pytest.mark.parametrize("name", PLANS)
def test_what_is_saved_comes_back_to_every_rank(name: str, tmp_path: Path) -> None:
    program = program_of(name)
    trained, other = executor_of(program, steps=2), executor_of(program, seed=9)
    state = gathered(trained)
    file = tmp_path / "step-000002.pt"
    state.save(file)
    loaded = checkpoint.load(file, program.model, program.optimizer)
    assert (loaded.model, loaded.step, loaded.seed) == (program.model.name, 2, 1)
    for rank in other.ranks:
        checkpoint.restore(rank, loaded)
    for one, two in zip(trained.ranks, other.ranks, strict=True):
        for segment, parameters in one.parameters.items():
            others = two.parameters[segment]
            pairs = [
                *zip(parameters.weights, others.weights, strict=True),
                *(
                    (t.value, o.value)
                    for t, o in zip(parameters.targets, others.targets, strict=True)
                ),
            ]
            for kept, other_kept in zip(
                parameters.state.values(), others.state.values(), strict=True
            ):
                pairs += zip(kept, other_kept, strict=True)
            for expected, found in pairs:
                assert torch.equal(expected, found)
    assert [trained.step(step) for step in (2, 3)] == [other.step(step) for step in (2, 3)]


def test_the_weights_are_those_of_the_whole_network() -> None:
    executor = executor_of(program_of("input"), steps=1)
    state = gathered(executor)
    for name, weight in executor.parameters().items():
        assert torch.equal(state.parameters[name].double(), weight), name


def test_a_piece_left_out_is_never_saved(tmp_path: Path) -> None:
    executor = executor_of(program_of("columns"))
    state = checkpoint.State.empty(LENET, 0, 1, Precision.of("float32"), Sgd2012())
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
        "schema": 2, "model": "lenet5", "step": 2, "seed": 1, "lr": 0.1, "optimizer": "sgd2012",
        "parameters": state.parameters, "state": state.state,
    }  # fmt: skip


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def wrong_shape(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: torch.zeros(3)}


DAMAGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "another schema": ("schema", lambda _: 3, "checkpoint schema 3; this release reads 1 and 2"),
    "no weights": ("parameters", lambda _: {}, "conv1.weight is missing in the checkpoint "),
    "a weight left out": ("parameters", without("fc4.weight"), "fc4.weight is missing"),
    "a bias left out": ("parameters", without("fc5.bias"), "fc5.bias is missing"),
    "another weight": ("parameters", wrong_shape("conv2.weight"), r"conv2.weight is \(3,\)"),
    "another bias": ("parameters", wrong_shape("conv2.bias"), r"conv2.bias is \(3,\)"),
    "no state": ("state", lambda _: {}, "of optimizer sgd2012, which keeps nothing; .* momentum i"),
    "a momentum left out": (
        "state", without("fc5.bias"), "momentum of fc5.bias is missing in the checkpoint"
    ),
    "another momentum": (
        "state", lambda state: {**state, "fc5.bias": {"momentum": torch.zeros(3)}},
        r"momentum of fc5.bias is \(3,\)",
    ),
    "another optimizer": (
        "optimizer", lambda _: "sgd",
        "is of optimizer sgd, which keeps momentum; this run's is sgd2012, whose momentum has",
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
        checkpoint.load(file, LENET, Sgd2012())
    assert caught.value.location == str(file)
    assert caught.value.remedy


def test_the_untouched_file_is_read(whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "step-000002.pt"
    torch.save(whole, file)
    assert checkpoint.load(file, LENET, Sgd2012()).step == 2


def test_a_file_of_the_first_schema_is_read(whole: dict[str, Any], tmp_path: Path) -> None:
    """It had weights and velocities, of the one optimizer that there was."""
    file = tmp_path / "step-000002.pt"
    older = {key: whole[key] for key in ("model", "step", "seed", "lr")}
    velocities = {name: kept["momentum"] for name, kept in whole["state"].items()}
    torch.save(
        {**older, "schema": 1, "weights": whole["parameters"], "velocities": velocities}, file
    )
    state = checkpoint.load(file, LENET, Sgd2012())
    assert (state.lr, state.optimizer) == (0.1, "sgd2012")
    assert torch.equal(state.parameters["fc5.bias"], whole["parameters"]["fc5.bias"])
    assert torch.equal(state.state["fc5.bias"]["momentum"], velocities["fc5.bias"])
    with pytest.raises(InputError, match="this run's is adamw, and exp_avg, exp_avg_sq, step are"):
        checkpoint.load(file, LENET, AdamW())


def test_another_model_is_refused(whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "step-000002.pt"
    torch.save(whole, file)
    wide = Model("wide", LINEAR.input_shape, LINEAR.declared)
    with pytest.raises(InputError, match="model lenet5") as caught:
        checkpoint.load(file, wide, Sgd2012())
    assert "wide" in str(caught.value)


def junk(file: Path) -> None:
    file.write_text("junk")


def empty(file: Path) -> None:
    file.touch()


def cut_short(file: Path) -> None:
    torch.save({"schema": 2, "parameters": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-200])


def another_program(file: Path) -> None:
    torch.save({"state_dict": {}}, file)


def a_tensor(file: Path) -> None:
    torch.save(torch.zeros(3), file)


def code(file: Path) -> None:
    """A pickle that would run a function when it is loaded."""
    torch.save({"schema": 2, "step": print}, file)


@pytest.mark.parametrize("make", [junk, empty, cut_short, another_program, a_tensor, code])
def test_a_file_that_is_no_checkpoint_is_refused_in_our_words(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """torch's own message tells how to load files that one should not trust."""
    file = tmp_path / "step-000002.pt"
    make(file)
    with pytest.raises(InputError, match="not a checkpoint of this program") as caught:
        checkpoint.load(file, LENET, Sgd2012())
    assert "torch" not in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read it: No such file"):
        checkpoint.load(tmp_path / "missing.pt", LENET, Sgd2012())


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
