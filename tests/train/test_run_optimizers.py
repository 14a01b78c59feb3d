"""Runs of every optimizer and format end, go on elsewhere, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.small_runs import checkpoint, losses, plan_file, run, same, trained

FLOAT16 = ("--set", "training.precision=float16")
ADAMW = ("--set", "training.optimizer=adamw", "--set", "training.lr=0.01")
LARS = ("--set", "training.optimizer={name: lars, trust: 0.1}")
BFLOAT16 = ("--set", "training.precision=bfloat16")
ASKED = {
    "sgd2012": (),
    "nesterov": ("--set", "training.optimizer={name: sgd, nesterov: true}"),
    "adamw": ADAMW,
    "lars": LARS,
    "adamw in bfloat16": (*ADAMW, *BFLOAT16),
    "adamw in float16": (*ADAMW, *FLOAT16),
    "adamw in float64": (*ADAMW, "--set", "training.precision=float64"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_resumed_run_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    asked = ASKED[name]
    plan = {"lars": "data", "adamw in float16": "one"}.get(name, "sharded")
    plan = "everything" if name in ("adamw in bfloat16", "adamw in float64") else plan
    whole = trained(tmp_path, plan, 6, *asked)
    out = trained(tmp_path, plan, 3, *asked)
    assert run(tmp_path / f"{plan}.yaml", out, 3, "--resume", str(out), *asked).code == 0
    assert losses(out) == losses(whole)
    assert same(checkpoint(out, 6), checkpoint(whole, 6))


@pytest.mark.parametrize("name", ["adamw", "adamw in bfloat16"])
@pytest.mark.parametrize(("first", "then"), [("sharded", "columns"), ("stages", "sharded")])
def test_another_plan_goes_on_where_one_ended(
    name: str, first: str, then: str, tmp_path: Path
) -> None:
    """With another sharding, too. Nothing is lost on the way: a run of no steps under the other
    plan would save the same bits."""
    out = trained(tmp_path, first, 3, *ASKED[name])
    expected = losses(trained(tmp_path, first, 6, *ASKED[name]))
    ended = run(plan_file(tmp_path, then), tmp_path / "then", 3, "--resume", str(out), *ASKED[name])
    assert ended.code == 0, ended.err
    tolerance = 5e-2 if "bfloat16" in name else 1e-4
    assert losses(tmp_path / "then") == pytest.approx(expected[3:], rel=tolerance)
    kept = checkpoint(tmp_path / "then", 6)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert {float(tensor) for key, tensor in kept.items() if key.startswith("step.")} == {6.0}


@pytest.mark.parametrize(
    ("first", "then", "says", "remedy"),
    [
        (
            (), ADAMW,
            "the checkpoint is of optimizer sgd2012, which keeps momentum; this run's is adamw, "
            "and exp_avg, exp_avg_sq, step are missing",
            "training.optimizer: sgd2012",
        ),
        (
            (), ("--set", "training.optimizer=sgd"),
            "is of optimizer sgd2012, which keeps momentum; this run's is sgd, whose momentum has",
            "training.optimizer: sgd2012",
        ),
        (
            ("--set", "training.optimizer={name: sgd, momentum: 0}"),
            ("--set", "training.optimizer=sgd"),
            "is of optimizer sgd, which keeps nothing; this run's is sgd, and momentum is missing",
            "with the options of that run",
        ),
    ],
)  # fmt: skip
def test_another_optimizer_is_refused(
    first: tuple[str, ...], then: tuple[str, ...], says: str, remedy: str, tmp_path: Path
) -> None:
    out = trained(tmp_path, "data", 2, *first)
    ended = run(tmp_path / "data.yaml", tmp_path / "new", 1, "--resume", str(out), *then)
    assert ended.code == 2
    assert says in ended.err
    assert remedy in ended.err
    assert not (tmp_path / "new").exists()


def test_a_run_in_float32_goes_on_in_bfloat16_and_back(tmp_path: Path) -> None:
    """A master is a parameter in float32: the file has one of the two."""
    out = trained(tmp_path, "data", 2)
    plan = tmp_path / "data.yaml"
    assert run(plan, out, 2, "--resume", str(out), *BFLOAT16).code == 0
    assert run(plan, out, 2, "--resume", str(out)).code == 0
    assert len(losses(out)) == 6


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("one", ("optimizer_sharding=zero1",), "no two ranks hold the same parameters"),
        ("columns", ("training.optimizer=lars",), "the placement cuts conv1.weight over ranks"),
        ("sharded", ("training.optimizer=lars",), "a shard has a part of it"),
        ("data", ("training.precision=tfloat32",), "a processor has no products in tfloat32"),
        ("data", ("training.optimizer.name=adamv",), "found 'adamv'; allowed: sgd2012, sgd, adamw"),
        ("data", ("training.precision=float16",), "a dynamic loss scale with 2 ranks: whether an"),
        ("data", ("training.loss_scale=0",), "found 0; allowed: dynamic, or a number above 0"),
        ("data", ("training.loss_scale=8",), "found loss_scale beside compute: float32, whose"),
        (
            "one",
            ("training.precision=float16", "training.layer_batch={fc2..fc3: 4}"),
            "a dynamic loss scale with layer_batch",
        ),
    ],
)
def test_what_cannot_be_is_one_message(
    name: str, asked: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    more = [x for one in asked for x in ("--set", one)]
    ended = run(plan_file(tmp_path, name), tmp_path / "out", 1, *more)
    assert ended.code == 2
    assert says in ended.err
    assert "remedy: " in ended.err
    assert ended.err.count("error") == 1
    assert not (tmp_path / "out").exists()
