"""The run folder: never over another run, whole files only, and gone if the run never began."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.plan import load_plan
from orchestrator.train.run_folder import RunFolder
from tests.train.small_runs import plan_file

PLAN = load_plan("krizhevsky2012")


def contents(path: Path) -> dict[str, bytes | None]:
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
    }


def test_a_new_folder_and_its_parents_are_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b", PLAN)
    assert load_plan(folder.path / "plan.yaml") == PLAN
    assert set(contents(folder.path)) == {"plan.yaml", "steps.jsonl", "checkpoints"}
    assert folder.checkpoint(40) == folder.path / "checkpoints" / "step-000040.pt"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunFolder(tmp_path, PLAN)
    assert (tmp_path / "plan.yaml").exists()


def test_a_model_file_of_the_users_is_copied_along(tmp_path: Path) -> None:
    """So that the run can be read when the user's file has changed."""
    plan = load_plan(plan_file(tmp_path, "columns"))
    folder = RunFolder(tmp_path / "out", plan)
    own = load_plan(folder.path / "plan.yaml")
    assert own.model_file == folder.path / "net.py"
    assert own.model_file.read_text() == (tmp_path / "net.py").read_text()
    RunFolder(folder.path, own, keep_before=0)  # onto itself
    assert own.model_file.read_text() == (tmp_path / "net.py").read_text()


def a_file(path: Path) -> Path:
    path.write_text("mine")
    return path


def a_folder_with_a_file(path: Path) -> Path:
    path.mkdir()
    (path / ".hidden").write_text("mine")
    return path


@pytest.mark.parametrize("make", [a_file, a_folder_with_a_file])
def test_nothing_is_written_over(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "taken")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="does not write over another") as caught:
        RunFolder(path, PLAN)
    assert caught.value.remedy == "another folder"  # there is nothing here to resume
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["file/below/it", "new/" + "x" * 300])
def test_a_path_that_cannot_be_made_leaves_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="cannot write to the run folder") as caught:
        RunFolder(tmp_path / name, PLAN)
    assert caught.value.location == "--out"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("existed", [True, False])
def test_a_disk_that_fills_up_at_the_start_leaves_nothing(
    existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "a" / "b"
    if existed:
        out.mkdir(parents=True)
    before = contents(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        RunFolder(out, PLAN)
    assert contents(tmp_path) == before


def test_discarding_removes_what_the_run_made_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    first, second = RunFolder(tmp_path / "runs/x/1", PLAN), RunFolder(tmp_path / "runs/x/2", PLAN)
    first.discard()
    assert not first.path.exists()
    assert second.path.exists()
    second.discard()
    assert not (tmp_path / "runs/x/2").exists()
    assert (tmp_path / "runs").is_dir()


def test_going_on_in_place_keeps_the_steps_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, PLAN)
    for step in range(5):
        folder.add_step({"step": step, "loss": 1.0})
    (folder.path / "checkpoints" / "step-000003.pt").write_text("")
    again = RunFolder(tmp_path, PLAN.model_copy(update={"name": "other"}), keep_before=3)
    again.add_step({"step": 3, "loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert again.checkpoint(3).exists()
    assert load_plan(tmp_path / "plan.yaml").name == "other"


def test_going_on_in_place_can_be_taken_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, PLAN)
    for step in range(5):
        folder.add_step({"step": step})
    before = contents(tmp_path)
    other = RunFolder(tmp_path, PLAN.model_copy(update={"name": "other"}), keep_before=3)
    other.write_json("metrics.json", {})
    assert contents(tmp_path) != before
    other.discard()
    assert contents(tmp_path) == before


def test_a_last_line_cut_short_by_a_crash_is_no_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, PLAN)
    folder.add_step({"step": 0})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    again = RunFolder(tmp_path, PLAN, keep_before=2)
    again.add_step({"step": 2})
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2]


def test_a_file_is_put_in_place_once_it_is_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", PLAN)
    folder.write_json("summary.json", {"steps": 1})
    with pytest.raises(KeyboardInterrupt), folder.replacing("summary.json") as file:  # noqa: PT012
        file.write_text('{"steps": ')
        raise KeyboardInterrupt
    assert json.loads((folder.path / "summary.json").read_text()) == {"steps": 1}
    assert not [path for path in folder.path.iterdir() if path.name.endswith(".part")]
    with folder.replacing("summary.json") as file:
        file.write_text("{}")
        assert json.loads((folder.path / "summary.json").read_text()) == {"steps": 1}
    assert (folder.path / "summary.json").read_text() == "{}"
