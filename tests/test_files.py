"""Reading never waits for ever; writing replaces no device and leaves nothing half-written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.files import NotRegular, open_regular, replacing, write_text
from tests.cli.command import SMALL, command, refused

ROOT = Path(__file__).resolve().parent.parent


def failing_write(path: Path, text: str) -> None:
    """Write half of it, and fail."""
    with replacing(path) as file:
        file.write_text(text)
        raise RuntimeError("half-way")


# -- reading --------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device"),
    ):  # fmt: skip
        with pytest.raises(NotRegular, match=kind):
            open_regular(path)


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these once waited for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    here = ("--launcher", "local", "--steps", "1", *SMALL)
    for call in (
        ("show", "pipe.yaml"),
        ("verify", "pipe.yaml"),
        ("compare", "pipe.yaml", "--cluster", "gtx580x2"),
        ("run", "--plan", "pipe.yaml", *here),
        ("show", "single", "--cluster", "pipe.yaml"),
        ("simulate", "--plan", "single", "--cluster", "pipe.yaml"),
    ):
        assert "it is a pipe, not a file" in refused(*call)
    assert command("run", "--plan", "single", "--out", "before", *here).code == 0
    (checkpoint,) = Path("before/checkpoints").iterdir()
    for file in (checkpoint, Path("before/steps.jsonl")):
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        resume = ("run", "--plan", "single", *here, "--resume", "before")
        assert "not a file" in refused(*resume)
        file.unlink()
        file.write_bytes(kept)
    for name in ("plan.yaml", "summary.json", "timeline.jsonl"):
        Path("before", name).unlink()
        os.mkfifo(Path("before", name))
        assert name in refused("compare", "before")


def test_a_plan_comes_through_a_pipe_that_the_shell_has_opened() -> None:
    """``verify`` reads a plan at several batches, and a pipe can be read once."""
    text = (ROOT / "partitions" / "data-parallel.yaml").read_text()
    words = ("--set", "model.name=lenet5", "--set", "placement.0.layers=conv1..fc5", "--steps", "1")
    for call in (("show", "-", "--json"), ("verify", "/dev/stdin", *words)):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *call], input=text, capture_output=True,
            text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "data-parallel" in done.stdout


# -- writing --------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("before")
    file.chmod(0o604)
    link.symlink_to("file")
    with pytest.raises(RuntimeError):
        failing_write(link, "half")
    assert file.read_text() == "before"
    write_text(link, "after")
    assert link.is_symlink()
    assert file.read_text() == "after"
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_text(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "x" * 100_000)
    reader.join(10)
    assert came == ["x" * 100_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_that_is_full_stays_a_device() -> None:
    """As root, a rename once put a file in its place."""
    for call in (
        ("compare", "single", "--cluster", "gtx580x2", "--html"),
        ("show", "single", "--picture"),
    ):
        suffixed = "/dev/full" if "--html" in call else link_to_full()
        message = refused(*call, suffixed)
        assert "No space left on device" in message
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def link_to_full() -> str:
    """A name for the device that ends as pictures do."""
    link = Path("full.svg").resolve()
    link.unlink(missing_ok=True)
    link.symlink_to("/dev/full")
    return str(link)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_is_written_in_one_place() -> None:
    """Who writes past ``files`` may replace a device, or leave half a file."""
    wrong = []
    for path in (ROOT / "orchestrator").rglob("*.py"):
        if path.name == "files.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "os.replace(" in line or '.part"' in line:
                wrong.append(f"{path}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
