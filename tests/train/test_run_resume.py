"""A run that went on is the run that never stopped: the same bits, and by any plan the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.execute.reference import Reference
from orchestrator.models.model import Recipe
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.train.data import SampleOrder
from orchestrator.train.data.digits import open_digits
from orchestrator.train.feed import DataFeed
from tests.train.small_runs import (
    check_consistent,
    checkpoint,
    lines,
    losses,
    plan_file,
    run,
    same,
    summary,
    trained,
)

NAMES = ("one", "columns", "data", "sharded", "pipeline", "replicas")


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_and_three_more_are_six(name: str, tmp_path: Path) -> None:
    whole = trained(tmp_path, name, 6)
    out = trained(tmp_path, name, 3)
    ended = run(tmp_path / f"{name}.yaml", out, 3, "--resume", str(out))
    assert (ended.code, ended.err) == (0, "")
    assert losses(out) == losses(whole)
    assert same(checkpoint(out, 6), checkpoint(whole, 6))
    check_consistent(out)
    assert (summary(out)["first_step"], summary(out)["steps"]) == (3, 3)
    assert {row["step"] for row in lines(out / "timeline.jsonl")} == {3, 4, 5}


def test_a_folder_resumed_into_another_one_stays_as_it_is(tmp_path: Path) -> None:
    whole, half = trained(tmp_path, "columns", 6), trained(tmp_path, "columns", 3)
    before = {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()}
    plan, out = tmp_path / "columns.yaml", tmp_path / "out"
    assert run(plan, out, 3, "--resume", str(half)).code == 0
    assert before == {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()}
    assert losses(out) == losses(whole)[3:]
    assert [row["step"] for row in lines(out / "steps.jsonl")] == [3, 4, 5]
    assert same(checkpoint(out, 6), checkpoint(whole, 6))


def test_any_checkpoint_can_be_named(tmp_path: Path) -> None:
    whole = trained(tmp_path, "data", 6, "--checkpoint-every", "2")
    files = sorted((whole / "checkpoints").iterdir())
    assert [path.name for path in files] == [f"step-00000{step}.pt" for step in (2, 4, 6)]
    out = tmp_path / "out"
    assert run(tmp_path / "data.yaml", out, 2, "--resume", str(files[0])).code == 0
    assert losses(out) == losses(whole)[2:4]
    assert same(checkpoint(out, 4), checkpoint(whole, 4))


@pytest.mark.parametrize("name", NAMES)
def test_another_plan_goes_on_where_the_first_one_stopped(name: str, tmp_path: Path) -> None:
    """To float32's rounding: sums are taken in another order."""
    whole, half = trained(tmp_path, "columns", 6), trained(tmp_path, "columns", 3)
    out = tmp_path / "out"
    assert run(plan_file(tmp_path, name), out, 3, "--resume", str(half)).code == 0
    assert losses(out) == pytest.approx(losses(whole)[3:], rel=1e-5)
    found, expected = checkpoint(out, 6), checkpoint(whole, 6)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        error = (found[key] - tensor).abs().max() / tensor.abs().max()
        assert error < 1e-5, key


def test_a_run_taken_over_by_another_plan_in_place(tmp_path: Path) -> None:
    out = trained(tmp_path, "columns", 3)
    assert run(plan_file(tmp_path, "pipeline"), out, 3, "--resume", str(out)).code == 0
    check_consistent(out)
    assert len(losses(out)) == 6
    assert summary(out)["name"] == "pipeline"
    assert "name: pipeline" in (out / "plan.yaml").read_text()


@pytest.mark.parametrize(("name", "other"), [("data", "sharded"), ("stages", "replicas")])
def test_a_sharded_optimizers_checkpoint_is_the_whole_one(
    name: str, other: str, tmp_path: Path
) -> None:
    """Its momenta lie in pieces over the ranks; a checkpoint has them by layer all the same."""
    plain = checkpoint(trained(tmp_path, name, 3), 3)
    sharded = checkpoint(trained(tmp_path, other, 3), 3)
    assert plain.keys() == sharded.keys()
    for key, tensor in plain.items():  # equal but for the rounding of the last bit
        error = (sharded[key] - tensor).abs().max() / tensor.abs().max()
        assert error < 1e-5, key
    for layer in ("conv1", "fc2", "fc3"):
        assert plain[f"momentum.{layer}.weight"].count_nonzero() > 0


def test_a_new_rate_leaves_the_velocity_as_it_was(tmp_path: Path) -> None:
    """In the paper's update the rate is inside the velocity; torch's optimizer has it outside."""
    out = trained(tmp_path, "sharded", 3)
    plan = tmp_path / "sharded.yaml"
    assert run(plan, out, 3, "--resume", str(out), "--set", "training.lr=0.01").code == 0
    model, order = model_of(load_plan(plan)), SampleOrder(1797, 16, seed=3)
    everything = torch.arange(16)
    feed = DataFeed(
        open_digits((1, 12, 12), 10), order, image_samples=everything, label_samples=everything,
        start=0, stop=6,
    )  # fmt: skip
    with feed:
        reference = Reference(
            model, feed, Recipe(lr=0.1, seed=3), global_batch=16, dtype="float32",
            update_examples={},
        )  # fmt: skip
        expected = [reference.step(step) for step in range(3)]
        reference.recipe = Recipe(lr=0.01, seed=3)
        expected += [reference.step(step) for step in range(3, 6)]
    assert losses(out) == pytest.approx(expected, rel=1e-5)


def test_the_data_go_on_too(tmp_path: Path) -> None:
    """Had it begun anew, the resumed run would see the first steps' images again."""
    out = trained(tmp_path, "columns", 3)
    seen = losses(trained(tmp_path, "columns", 6))
    assert run(tmp_path / "columns.yaml", out, 3, "--resume", str(out)).code == 0
    assert len(set(seen)) == 6
    assert losses(out)[3:] == seen[3:]


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    out = trained(tmp_path, "columns", 2)
    plan = tmp_path / "lenet.yaml"
    plan.write_text(
        "schema_version: 1\nname: lenet\nmodel: {name: lenet5}\nglobal_batch_size: 4\n"
        "placement:\n- {layers: conv1..fc5, ranks: [0], split: none}\n"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = run(plan, tmp_path / "new", 1, "--resume", str(out))
    assert ended.code == 2
    assert "conv1.weight is (8, 1, 3, 3) in the checkpoint (model net)" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
