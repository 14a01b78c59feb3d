"""Bad input: one message on standard error, exit 2, and the disk as it was before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import SMALL, command, refused

Setup = Callable[[Path], object]
RUN = (
    "run", "--plan", "krizhevsky2012", "--launcher", "local", "--steps", "1", *SMALL,
    "--set", "global_batch_size=8",
)  # fmt: skip


def run_with(*more: str) -> tuple[str, ...]:
    return (*RUN, "--out", "out", *more)


def with_set(*values: str) -> tuple[str, ...]:
    return run_with(*(word for value in values for word in ("--set", value)))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check(arguments: tuple[str, ...], says: str) -> None:
    """Refused in one message that says so, and nothing is left behind in the working folder."""
    before = files(Path())
    message = refused(*arguments)
    assert says in message
    assert len(re.findall("^[Ee]rror: ", message, re.MULTILINE)) == 1
    assert files(Path()) == before


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the command itself ---------------------------------------------------------------------------

CALLS = [
    (("nonsense",), "No such command 'nonsense'"),
    (("--nonsense",), "No such option"),
    (("show",), "Missing argument"),
    (("run",), "Missing argument 'PLAN'"),
    (("run", "single", "--plan", "data-parallel"), "two plans, single and data-parallel"),
    (run_with("--steps", "0"), "--steps: 0 is not a number of steps"),
    (run_with("--steps", "ten"), "'ten' is not a valid integer"),
    (run_with("--epochs", "1"), "--steps and --epochs both say how long"),
    (run_with("--launcher", "slurm"), "'slurm' is not one of"),
    (run_with("--checkpoint-every", "-1"), "-1 is not in the range"),
    (run_with("--timeout", "0"), "0.0 is not a number of seconds"),
    (run_with("--timeout", "nan"), "nan is not a number of seconds"),
    (run_with("--timeout", "inf"), "inf is not a number of seconds"),
]


@pytest.mark.parametrize(("arguments", "says"), CALLS, ids=[says for _, says in CALLS])
def test_a_call_that_cannot_be_meant(arguments: tuple[str, ...], says: str) -> None:
    check(arguments, says)


# -- plans ----------------------------------------------------------------------------------------

PLANS: dict[str, tuple[tuple[str, ...], str]] = {
    "no such plan": (("run", "--plan", "krizhevsky2O12"), "krizhevsky2012"),
    "no such model": (with_set("model.name=alexnet"), "there is no model 'alexnet'"),
    "an option of another model": (with_set("model.name=lenet5", "model.norm=x"), "norm"),
    "an unknown key": (with_set("batch=8"), "unknown key 'batch'"),
    "a format that a processor lacks": (
        with_set("training.precision=tfloat32"),
        "--set training.precision=tfloat32: a processor has no products in tfloat32",
    ),
    "a batch of no images": (with_set("global_batch_size=0"), "global_batch_size=0"),
    "a batch that does not divide": (
        with_set("global_batch_size=9", "n_microbatches=2"), "a multiple of"
    ),
    "shares for other ranks": (with_set("placement.0.shares=[1, 2, 3]"), "3 shares for 2 ranks"),
    "shares that do not divide": (with_set("placement.0.shares=[3, 4]"), "do not divide"),
    "channels that do not divide": (with_set("placement.0.ranks=0..4"), "do not divide"),
    "a rank left out": (with_set("placement.1.ranks=[3]"), "rank 2 is unused"),
    "a layer twice": (with_set("placement.1.layers=fc7..fc8"), "fc7"),
    "a layer left out": (with_set("placement.0.layers=conv1..fc7"), "relu7"),
    "layers that do not exist": (with_set("placement.0.layers=conv1..fc9"), "fc9"),
    "no placement": (with_set("placement=[]"), "at least one entry"),
    "a schedule for stages": (with_set("schedule=ZBVZeroBubble"), "ZBVZeroBubble"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_contradicts_itself(case: str) -> None:
    arguments, says = PLANS[case]
    check(arguments, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("placement: [", "plan.yaml:1:"),
        ("- 1\n- 2\n", "a mapping"),
        ("schema_version: 2\n", "schema_version"),
        ("schema_version: 1\nname: x\nname: y\n", "name"),
    ],
)
def test_a_file_that_is_no_plan(text: str, says: str) -> None:
    Path("plan.yaml").write_text(text)
    check(("show", "plan.yaml"), says)
    check(("run", "--plan", "plan.yaml", "--launcher", "local"), says)


def test_a_folder_as_a_plan() -> None:
    Path("plans").mkdir()
    check(("show", "plans"), "this is a folder")


MODELS = [
    ("import nonsense_module\n", "fails on import"),
    ("raise SystemExit(3)\n", "fails on import"),
    ("net = 3\n", "has no function 'net'"),
    ("def net():\n    return 1 / 0\n", "ZeroDivisionError"),
    ("def net():\n    return 'alexnet'\n", "not a Model"),
]


@pytest.mark.parametrize(("text", "says"), MODELS, ids=[says for _, says in MODELS])
def test_a_model_file_that_gives_no_model(
    text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("net.py").write_text(text)
    Path("plan.yaml").write_text(
        "schema_version: 1\nname: own\nmodel: {file: net.py, function: net}\n"
        "global_batch_size: 8\nplacement:\n- {layers: a, ranks: [0], split: none}\n"
    )
    check(("run", "--plan", "plan.yaml", "--launcher", "local", "--out", "out"), says)


# -- data -----------------------------------------------------------------------------------------


def images(root: Path, classes: str, count: int = 6) -> None:
    for label in classes:
        (root / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (70, 70), (i, i, i)).save(root / label / f"{i}.png")


def no_classes(root: Path) -> None:
    root.mkdir()


def one_class(root: Path) -> None:
    images(root, "a")


def an_empty_class(root: Path) -> None:
    images(root, "ab")
    (root / "c").mkdir()


def too_few_images(root: Path) -> None:
    images(root, "ab", count=2)


def a_text_file(root: Path) -> None:
    images(root, "ab")
    (root / "b" / "notes.txt").write_text("not an image")


def all_broken(root: Path) -> None:
    """Broken inside: only decoding shows it, when the first batch is loaded."""
    images(root, "ab")
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])


def text_as_images(root: Path) -> None:
    images(root, "ab")
    for path in root.rglob("*.png"):
        path.write_text("not an image")


FOLDERS: list[tuple[Setup, str]] = [
    (no_classes, "no class folders"),
    (one_class, "one class folder only, a"),
    (an_empty_class, "no images in this class folder"),
    (too_few_images, "a batch of 8 images does not fit into the data, which has 4"),
    (a_text_file, "notes.txt: not an image"),
    (all_broken, ".png: cannot be decoded"),
    (text_as_images, ".png: cannot be decoded"),
    (lambda root: None, "does not exist"),
]


@pytest.mark.parametrize(("setup", "says"), FOLDERS, ids=[says for _, says in FOLDERS])
def test_an_image_folder_that_cannot_be_trained_on(setup: Setup, says: str, tmp_path: Path) -> None:
    """No run folder is left, though broken images are found when the run has begun."""
    setup(tmp_path / "images")
    check(run_with("--data", "imagefolder:images"), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "mnist"), "digits, synthetic"),
        (("--data", "synthetic:4"), "which has 4"),
        (("--data", "synthetic:many"), "must be a whole number"),
        (("--data", "imagefolder:"), "a folder must follow"),
        (("--set", "model.classes=4"), "--set model.classes=10"),
        (("--set", "global_batch_size=2000"), "does not fit into the data, which has 1,797"),
    ],
)
def test_data_that_the_model_or_the_batch_does_not_fit(
    arguments: tuple[str, ...], says: str
) -> None:
    check(run_with(*arguments), says)


# -- the run folder -------------------------------------------------------------------------------


def a_file(path: Path) -> None:
    path.write_text("")


def another_run(path: Path) -> None:
    path.mkdir()
    (path / "summary.json").write_text("{}")


OUTS: list[tuple[Setup, str, str]] = [
    (a_file, "taken", "exists and is not an empty folder"),
    (another_run, "taken", "exists and is not an empty folder"),
    (a_file, "taken/below/it", "cannot write to the run folder"),
    (a_file, "x" * 300, "cannot write to the run folder"),
]


@pytest.mark.parametrize(("setup", "out", "says"), OUTS)
def test_a_run_folder_that_cannot_be_had(setup: Setup, out: str, says: str, tmp_path: Path) -> None:
    setup(tmp_path / "taken")
    check((*RUN, "--out", out), says)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    check((*RUN, "--out", "locked/run"), "cannot write to the run folder")


def no_checkpoints(path: Path) -> None:
    (path / "checkpoints").mkdir(parents=True)


def junk(path: Path) -> None:
    no_checkpoints(path)
    (path / "checkpoints" / "step-000001.pt").write_text("junk")


RESUMES: list[tuple[Setup, str]] = [
    (lambda path: None, "has no checkpoint to resume from"),
    (no_checkpoints, "has no checkpoint to resume from"),
    (junk, "not a checkpoint of this program"),
    (a_file, "not a checkpoint of this program"),
]


@pytest.mark.parametrize(("setup", "says"), RESUMES)
def test_nothing_to_resume_from(setup: Setup, says: str, tmp_path: Path) -> None:
    setup(tmp_path / "before")
    check((*RUN, "--resume", "before"), says)
    check(run_with("--resume", "before"), says)


# -- terminals ------------------------------------------------------------------------------------


def test_a_terminal_that_knows_fewer_characters_gets_others() -> None:
    """Once a traceback: a plan's summary beyond ASCII on an ASCII terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "show", "single", "--set", "summary='naïve ±'"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "na\\xefve \\xb1" in done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    """``orchestrator show ... | head -1``"""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "show", "krizhevsky2012", "--json"],
            stdout=writing, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_help_is_not_bad_input() -> None:
    assert command("run", "--help").code == 0
