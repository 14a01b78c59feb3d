"""A run in this process: what it leaves behind, that it learns, and what an interrupt leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from orchestrator.cli.run_view import LineView
from orchestrator.errors import InputError
from orchestrator.execute.transport import CountingTransport, Handle
from orchestrator.observe.accounting import Account
from orchestrator.plan import load_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.ledger import edges
from orchestrator.program.resolve import model_of
from orchestrator.train.data import SampleOrder
from tests.cli.command import command
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

TIMES = (
    "compute_time_s", "exposed_communication_time_s", "wait_time_s", "bubble_time_s",
    "loading_time_s", "other_time_s",
)  # fmt: skip
TIMING = {
    "step_time_s", *TIMES, "communication_time_s", "overlap_ratio", "bytes_sent", "images_per_s",
    "peak_memory_bytes",
}  # fmt: skip
NAMES = ("one", "columns", "data", "sharded", "pipeline", "replicas")


@pytest.mark.parametrize("name", NAMES)
def test_the_run_folder(name: str, tmp_path: Path) -> None:
    out = trained(tmp_path, name, 3)
    check_consistent(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints", "metrics.json", "net.py", "plan.yaml", "steps.jsonl", "summary.json",
        "timeline.jsonl", "trace.json",
    ]  # fmt: skip
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000003.pt"]
    # Its own plan runs again from any folder, with the model file that was copied along.
    plan, own = load_plan(tmp_path / f"{name}.yaml"), load_plan(out / "plan.yaml")
    assert own == plan
    assert model_of(own).layers == model_of(plan).layers
    program = compile_plan(own, model_of(own))

    found = summary(out)
    assert found.keys() >= TIMING | {"ranks"}
    assert (found["name"], found["model"], found["source"]) == (name, "net", "measured")
    assert (found["first_step"], found["steps"], found["interrupted"]) == (0, 3, False)
    assert found["program"] == program.digest()
    assert found["ledger_exact"] is True
    assert found["bytes_sent"] == edges(program).total()
    assert found["loss_last"] == losses(out)[-1]
    assert [row["rank"] for row in found["ranks"]] == list(range(program.world_size))
    for row in (found, *found["ranks"]):
        assert row.keys() >= TIMING
        assert sum(row[key] for key in TIMES) == pytest.approx(row["step_time_s"])
        assert row["images_per_s"] == pytest.approx(16 / row["step_time_s"])

    for row in lines(out / "steps.jsonl"):
        assert row.keys() >= {"step", "loss", "lr", "images_per_s", "step_time_s", *TIMES}
        assert row["lr"] == 0.1
        assert sum(row[key] for key in TIMES) == pytest.approx(row["step_time_s"])

    rows = lines(out / "timeline.jsonl")
    assert [(row["step"], row["op"]) for row in rows] == [
        (step, op.id) for step in range(3) for op in program.ops()
    ]
    for row in rows:
        op = program.op(row["op"])
        assert (row["rank"], row["name"], row["bytes"]) == (op.rank, str(op), op.bytes)
        assert 0 <= row["ready"] <= row["start"] <= row["end"]
    # seconds since the first step began, not since the machine did
    assert min(row["ready"] for row in rows) == pytest.approx(0, abs=0.05)
    assert max(row["end"] for row in rows) < found["wall_s"]

    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    loading = [row["name"] for row in rows if "loading" in row]
    messages = sum(len(row.get("messages", [0])) for row in rows)
    assert sum(event["name"] != "loading" for event in slices) == messages
    assert 0 < sum(event["name"] == "loading" for event in slices) <= len(loading)


def test_the_loss_falls_on_real_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, "columns", batch=64), out, 15)
    assert ended.code == 0
    assert "this checks the machinery" in ended.out
    found = losses(out)
    assert sum(found[-3:]) < 0.8 * sum(found[:3])


def test_every_plan_sees_the_same_losses(tmp_path: Path) -> None:
    """Dropout on; float32 rounds sums of another order differently, by some 1e-7 a step."""
    first = losses(trained(tmp_path, "one", 4))
    assert len(set(first)) == 4
    for name in NAMES[1:]:
        assert losses(trained(tmp_path, name, 4)) == pytest.approx(first, rel=1e-5), name


def test_a_run_repeats_itself_and_its_seed_matters(tmp_path: Path) -> None:
    plan = plan_file(tmp_path, "columns")
    for out, more in (("a", ()), ("b", ()), ("c", ("--set", "training.seed=4"))):
        assert run(plan, tmp_path / out, 2, *more).code == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    assert same(checkpoint(tmp_path / "a", 2), checkpoint(tmp_path / "b", 2))


def test_what_is_printed(tmp_path: Path) -> None:
    ended = run(plan_file(tmp_path, "columns"), tmp_path / "[out]", 2)
    assert (ended.code, ended.err) == (0, "")
    told = ended.out.splitlines()
    assert told[0] == "columns: net, 2 ranks, batch 16"
    assert [line.split()[:2] for line in told[2:4]] == [["step", "1/2"], ["step", "2/2"]]
    assert all("exposed communication" in line for line in told[2:4])
    assert "counted by the workers as predicted" in told[-2]
    # Once a path with a bracket in it ended a run that had gone well in a traceback.
    assert told[-1] == f"run folder: {tmp_path}/[out]"


# -- a loss or a parameter that is not finite -----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_first_layer(
    name: str, tmp_path: Path
) -> None:
    """The first update leaves weights so large that the second forward ends beyond float32."""
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, name), out, 4, "--set", "training.lr=1e38")
    assert ended.code == 1
    told = ended.err.splitlines()
    assert told[0].startswith("error: step 2: the loss on rank ")
    assert "; first in the forward: the output of fc2 on rank " in told[0]
    assert told[1:] == [
        "  remedy: a lower rate than 1e+38, such as --set training.lr=1e+37",
        f"  {out} holds the steps that ended",
    ]
    check_consistent(out)
    assert len(losses(out)) == summary(out)["steps"] == 1
    assert summary(out)["interrupted"] is True
    assert summary(out)["loss_last"] == losses(out)[0] > 0
    assert list((out / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("name", ["columns", "sharded", "replicas"])
def test_parameters_that_are_not_finite_are_never_saved(name: str, tmp_path: Path) -> None:
    """The loss of the last step came before the update that broke them."""
    plan, out = plan_file(tmp_path, name), tmp_path / "out"
    assert run(plan, out, 2).code == 0
    ended = run(plan, out, 1, "--resume", str(out), "--set", "training.lr=1e39")
    assert ended.code == 1
    assert ended.err.startswith("error: after step 3 the parameters of conv1 on rank 0 are not ")
    check_consistent(out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002.pt"]
    assert len(losses(out)) == 3


def test_a_loss_that_is_not_finite_at_once_leaves_no_folder(tmp_path: Path) -> None:
    plan = plan_file(tmp_path, "pipeline")
    (tmp_path / "net.py").write_text(
        (tmp_path / "net.py").read_text().replace("weight_std=0.1", "weight_std=7e37")
    )
    ended = run(plan, tmp_path / "out", 2)
    assert ended.code == 1
    assert ended.err.startswith(
        "error: step 1: the loss on rank 1 is not finite; first in the forward: the output of fc2 "
        "on rank 1 is not finite, and what it reads and its parameters are\n"
        "  remedy: smaller start values of the weights; no update had been made\n"
    )
    assert not (tmp_path / "out").exists()


def test_one_epoch_takes_every_whole_batch_once(tmp_path: Path) -> None:
    plan = plan_file(tmp_path, "one")
    options = ("--launcher", "local", "--data", "synthetic:50", "--epochs", "2")
    ended = command("run", "--plan", str(plan), *options, "--out", str(tmp_path / "out"))
    assert ended.code == 0
    assert summary(tmp_path / "out")["steps"] == 2 * (50 // 16)


def test_a_byte_too_many_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.program import ledger

    def wrong(program: Program) -> object:
        found = edges(program)
        found[min(found)] += 4
        return found

    monkeypatch.setattr(ledger, "edges", wrong)
    ended = run(plan_file(tmp_path, "columns"), tmp_path / "out", 2)
    assert ended.code == 1
    assert "bytes differ: rank 0 -> 1 before fc2 (backward)" in ended.err
    assert summary(tmp_path / "out")["ledger_exact"] is False


@pytest.mark.parametrize(("name", "kind"), [("data", "ALL_REDUCE"), ("sharded", "ALL_GATHER")])
def test_a_collective_of_another_buffer_fails_the_run(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collective that is handed too little on every rank goes through, in silence."""
    usual = CountingTransport.collective

    def shortened(
        self: CountingTransport, kind_: str, tensor: Tensor, group: tuple[int, ...]
    ) -> Handle:
        return usual(self, kind_, tensor[:-2] if kind_ == kind else tensor, group)

    monkeypatch.setattr(CountingTransport, "collective", shortened)
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, name), out, 2)
    assert ended.code == 1
    assert f"buffers differ: rank 0, {kind} over ranks 0, 1, " in ended.err
    assert " bytes before conv1: predicted 2, handed over 0" in ended.err
    assert summary(out)["ledger_exact"] is False


def test_what_stands_for_collectives_is_called_the_ring_equivalent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, "data"), out, 1)
    assert summary(out)["ring_equivalent_bytes"] == summary(out)["bytes_sent"] > 0
    total = f"{summary(out)['bytes_sent']:,}"
    assert f"of the bytes sent {total} are the ring equivalent of collectives" in ended.out
    assert "counted by the workers (of collectives the buffers) as predicted" in ended.out


# -- interrupted ----------------------------------------------------------------------------------


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's Ctrl-C while the line of that step is printed."""
    printed = LineView.step

    def interrupted(
        self: LineView, at: int, loss: float, account: Account, images_per_s: float
    ) -> None:
        printed(self, at, loss, account, images_per_s)
        if at == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(LineView, "step", interrupted)


def test_an_interrupted_run_leaves_a_consistent_folder_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path, "columns", 6)
    plan, out = plan_file(tmp_path, "columns"), tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        ended = run(plan, out, 6, "--checkpoint-every", "2")
    assert ended.code == 130
    assert ended.err.strip() == "interrupted"
    assert ended.out.endswith(f"interrupted; {out} holds the steps that ended\n")
    check_consistent(out)
    found = summary(out)
    assert (found["interrupted"], found["steps"], found["ledger_exact"]) == (True, 3, None)
    assert found["step_time_s"] > 0
    assert losses(out) == losses(whole)[:3]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002.pt"]

    # Step 2 ended, but its weights were never saved: it is done again.
    assert run(plan, out, 4, "--resume", str(out)).code == 0
    check_consistent(out)
    assert losses(out) == losses(whole)
    assert same(checkpoint(out, 6), checkpoint(whole, 6))
    assert summary(out)["interrupted"] is False


def test_an_interrupt_before_the_first_step_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.execute.local import LocalExecutor

    def interrupted(self: LocalExecutor, step: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalExecutor, "step", interrupted)
    out = tmp_path / "out"
    assert run(plan_file(tmp_path, "columns"), out, 3).code == 130
    assert not out.exists()  # nothing to read, nothing to resume, and the name is free again


def test_an_interrupt_while_torch_is_imported_waits_for_it(tmp_path: Path) -> None:
    """numpy, in the middle of its import, makes a RecursionError of a KeyboardInterrupt."""
    plan = plan_file(tmp_path, "columns")
    code = """
import os, signal, sys
from orchestrator.cli import main

class Interrupt:
    at = ["numpy.linalg", "scipy.fft"]
    def find_spec(self, name, path=None, target=None):
        if name in self.at:
            self.at.remove(name)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
try:
    main(sys.argv[1:])
finally:
    print("left:", *Interrupt.at)
"""
    arguments = ["run", "--plan", str(plan), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--launcher", "local"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "interrupted"
    assert done.stdout.endswith("left:\n")


# -- bad input that only shows in the run ---------------------------------------------------------


def images(root: Path, step: int) -> Path:
    """Two classes of 16 images; the last one that a step reads, with seed 3, is cut short."""
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(16):
            noise = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{i:02d}.png")
    place, number = divmod(int(SampleOrder(32, 16, 3).indices(step)[-1]), 16)
    broken = root / "ab"[place] / f"{number:02d}.png"
    broken.write_bytes(broken.read_bytes()[:80])
    return broken


def test_a_broken_image_in_a_later_step_keeps_the_steps_before_it(tmp_path: Path) -> None:
    broken, out = images(tmp_path / "images", step=1), tmp_path / "out"
    data = ("--data", f"imagefolder:{tmp_path / 'images'}")
    ended = run(plan_file(tmp_path, "columns"), out, 2, *data)
    assert ended.code == 2
    assert f"{broken}: cannot be decoded" in ended.err
    check_consistent(out)
    assert (summary(out)["steps"], summary(out)["interrupted"]) == (1, True)


def test_a_broken_image_in_the_first_step_leaves_no_folder(tmp_path: Path) -> None:
    broken = images(tmp_path / "images", step=0)
    data = ("--data", f"imagefolder:{tmp_path / 'images'}")
    ended = run(plan_file(tmp_path, "columns"), tmp_path / "new" / "out", 2, *data)
    assert ended.code == 2
    assert f"{broken}: cannot be decoded" in ended.err
    assert not (tmp_path / "new").exists()


def test_a_run_refused_when_it_goes_on_leaves_its_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as: the Ray cluster has too few workers now."""
    from orchestrator.train import run as driver

    def refuse(*_: object) -> None:
        raise InputError("too few workers")

    out = trained(tmp_path, "columns", 3, "--checkpoint-every", "2")
    (out / "checkpoints" / "step-000003.pt").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(driver, "_run_locally", refuse)
    ended = run(plan_file(tmp_path, "data"), out, 1, "--resume", str(out))
    assert (ended.code, ended.err) == (2, "error: too few workers\n")
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
