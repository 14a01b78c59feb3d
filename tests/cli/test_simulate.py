"""``orchestrator simulate``: the keys of its JSON, exit codes, and the files of ``--out``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import shipped_names
from orchestrator.simulate.epoch import DIGITS, data_set
from orchestrator.train.data import SampleOrder, open_dataset
from tests.cli.command import command, refused

TIMES = (
    "compute_time_s", "exposed_communication_time_s", "wait_time_s", "bubble_time_s",
    "loading_time_s", "other_time_s",
)  # fmt: skip
TIMING = {
    "step_time_s", *TIMES, "communication_time_s", "overlap_ratio", "bytes_sent", "images_per_s",
    "peak_memory_bytes",
}  # fmt: skip
ONLY_SIMULATED = {
    "simulate_wall_s", "fits", "epoch", "epoch_time_s", "dollars_per_epoch", "kWh_per_epoch",
    "goodput_ratio",
}  # fmt: skip


def simulated(plan: str, cluster: str, *more: str) -> dict[str, Any]:
    ended = command("simulate", "--plan", plan, "--cluster", cluster, "--json", *more)
    found: dict[str, Any] = json.loads(ended.out)
    assert ended.code == (0 if found["fits"] else 1)
    assert found["fits"] == (ended.err == "")  # where it does not fit, what would
    return found


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_shares_of_every_rank_add_up_to_the_step(name: str) -> None:
    found = simulated(name, "dgx1-p100")
    assert found.keys() >= TIMING | ONLY_SIMULATED | {"ranks"}
    for row in (found, *found["ranks"]):
        assert row.keys() >= TIMING
        assert sum(row[key] for key in TIMES) == pytest.approx(row["step_time_s"], rel=1e-9)
        assert min(row[key] for key in TIMES) >= -1e-12
        assert row["images_per_s"] == pytest.approx(128 / row["step_time_s"])


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_what_is_sent_is_what_show_says(name: str) -> None:
    """Of replicas that are alike one is simulated, and once its bytes were told as those of all."""
    shown = json.loads(command("show", name, "--json").out)
    found = simulated(name, "dgx1-p100")
    assert found["bytes_sent"] == shown["bytes_per_step"] + shown["gradient_bytes_per_step"]
    for row, rank in zip(found["ranks"], shown["ranks"], strict=False):
        assert row["bytes_sent"] == (
            rank["activation_bytes_sent_per_step"] + rank["gradient_bytes_sent_per_step"]
        )


def test_the_same_call_gives_the_same_answer() -> None:
    first, second = (simulated("one-weird-trick-scatter", "gtx580x2") for _ in range(2))
    first.pop("simulate_wall_s")
    second.pop("simulate_wall_s")
    assert first == second


def test_what_does_not_fit_exits_1() -> None:
    big = ("--set", "global_batch_size=4096")
    assert simulated("krizhevsky2012", "gtx580x2", *big)["fits"] is False
    ended = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", *big)
    assert ended.code == 1
    assert "rank 0 does not fit GTX 580: needs" in ended.err


def test_the_cluster_can_be_overridden() -> None:
    fast = simulated("data-parallel", "gtx580x2", "--set", "cluster.network.0.GBps=600")
    slow = simulated("data-parallel", "gtx580x2")
    assert fast["communication_time_s"] < slow["communication_time_s"] / 10


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    assert "60,030,976" in ended.out


def test_the_files_of_out(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    found = simulated("krizhevsky2012", "gtx580x2", "--out", str(out))
    written = json.loads((out / "summary.json").read_text())
    assert written["step_time_s"] == found["step_time_s"]
    rows = [json.loads(line) for line in (out / "timeline.jsonl").read_text().splitlines()]
    longest = max(rank["step_time_s"] for rank in found["ranks"])
    # rank 0 enters last, since it was the last to leave the step before
    assert found["step_time_s"] <= max(row["end"] for row in rows) <= 1.05 * longest
    trace = json.loads((out / "trace.json").read_text())
    slices = sum(len(row.get("messages", [0])) for row in rows)
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == slices


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plan", "nonsense", "--cluster", "gtx580x2"), "nonsense"),
        (("--plan", "single", "--cluster", "nonsense"), "gtx580x2"),
        (("--plan", "single"), "--cluster"),
        (("--plan", "single", "--cluster", "gtx580x2", "--data", "mnist"), "imagenet"),
        (("--plan", "single", "--cluster", "gtx580x2", "--data", "hf:cifar10"), "imagefolder:PATH"),
        (("--plan", "single", "--cluster", "gtx580x2", "--data", "synthetic:x"), "above 0"),
        (("--plan", "single", "--cluster", "gtx580x2", "--examples", "0"), "--examples"),
        (("--plan", "four-columns", "--cluster", "gtx580x2"), "4 ranks"),
        (("--plan", "single", "--cluster", "gtx580x2", "--set", "cluster.x=1"), "x"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("simulate", *arguments)


EPOCHS = [
    ((), "imagenet", 1_281_167, 10_009),
    (("--data", "digits"), "digits", 1_797, 14),  # the last 5 images are dropped, as in a run
    (("--data", "synthetic:1280"), "synthetic:1280", 1280, 10),
    (("--data", "imagenet", "--examples", "128"), "imagenet", 128, 1),
    (("--examples", "300"), None, 300, 2),
]


@pytest.mark.parametrize(("options", "data", "examples", "steps"), EPOCHS)
def test_an_epoch_is_of_a_data_set(
    options: tuple[str, ...], data: str | None, examples: int, steps: int
) -> None:
    found = simulated("krizhevsky2012", "gtx580x2", *options)
    epoch = {"data": data, "examples": examples, "steps": steps, "because": None}
    assert found["epoch"] == epoch
    assert found["epoch_time_s"] == pytest.approx(steps * found["step_time_s"])
    hours = found["epoch_time_s"] / 3600
    assert found["kWh_per_epoch"] == pytest.approx(2 * 0.244 * hours)
    told = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", *options).out
    assert f"{data + ', ' if data else ''}{examples:,} images" in told


@pytest.mark.parametrize("options", [(), ("--data", "imagenet"), ("--data", "digits")])
def test_what_is_loaded_is_what_an_epoch_is_of(options: tuple[str, ...]) -> None:
    """Without --data an epoch was once of imagenet, and the digits were loaded."""
    processors = (
        "cluster.calibration={date: 2026-11-24, hardware: h, model: m, versions: {}, threads: 1, "
        "load_s: {imagenet: 7, digits: 11}}"
    )
    found = simulated("single", "gtx580x2", "--set", processors, *options)
    each = {"imagenet": 7, "digits": 11}[found["epoch"]["data"]]
    assert found["step_time_s"] == pytest.approx(128 * each, rel=0.05)
    compared = json.loads(
        command("compare", "single", "--cluster", "gtx580x2", "--set", processors, "--json").out
    )
    assert compared["items"][0]["predicted"]["step_time_s"] == pytest.approx(128 * 7, rel=0.05)


def test_data_that_nothing_names_is_loaded_in_no_time() -> None:
    processors = (
        "cluster.calibration={date: 2026-11-24, hardware: h, model: m, versions: {}, threads: 1, "
        "load_s: {digits: 11}}"
    )
    for options, what in (
        (("--examples", "300"), "data that --data does not name"),
        ((), "imagenet"),
    ):
        found = simulated("single", "gtx580x2", "--set", processors, *options)
        assert f"loading {what} was not measured on gtx580x2 and counts nothing" in found["notes"]
        assert found["loading_time_s"] == 0


def test_a_network_of_digits_has_epochs_of_digits(tmp_path: Path) -> None:
    """Those of LeNet-5 were once of ImageNet."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "schema_version: 1\nname: lenet\nmodel: {name: lenet5}\nglobal_batch_size: 128\n"
        "placement:\n- {layers: conv1..fc5, ranks: [0], split: none}\n"
    )
    epoch = simulated(str(plan), "gtx580x2")["epoch"]
    assert (epoch["data"], epoch["examples"], epoch["steps"]) == ("digits", DIGITS, 14)


@pytest.mark.parametrize(
    ("options", "because"),
    [
        (
            ("--data", "digits", "--set", "global_batch_size=2048"),
            "a batch of 2,048 does not fit into digits, which has 1,797",
        ),
        (("--set", "model.classes=16"), "no data set is known for alexnet2012 with 16 classes"),
    ],
)
def test_an_epoch_that_cannot_be_told_is_left_out(options: tuple[str, ...], because: str) -> None:
    """It once took 0 seconds and 0 dollars."""
    found = simulated("single", "h200x8", *options)
    assert found["epoch_time_s"] is None
    assert found["dollars_per_epoch"] is found["kWh_per_epoch"] is None
    assert found["epoch"]["steps"] is None
    assert because in found["epoch"]["because"]
    ended = command("simulate", "--plan", "single", "--cluster", "h200x8", *options)
    told = " ".join(ended.out.split())
    assert "an epoch not known: " in told
    assert "cost of an epoch" not in told


def test_images_of_a_folder_are_counted(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(70):
            (tmp_path / label / f"{i}.png").touch()
    found = simulated("single", "gtx580x2", "--data", f"imagefolder:{tmp_path}")
    assert (found["epoch"]["examples"], found["epoch"]["steps"]) == (140, 1)


def test_data_sets_are_as_large_as_a_run_finds_them() -> None:
    for name in ("digits", "synthetic"):
        real = open_dataset(name, shape=(1, 8, 8), classes=10, seed=0)
        known = data_set(name)
        assert known is not None
        assert known.examples == real.size
        order = SampleOrder(real.size, 100, 0)
        assert known.epoch(100).steps == order.steps_per_epoch


STRANGERS = {
    "a file of the same name": {"summary.json": "mine"},
    "JSON of somebody else": {"summary.json": '{"source": "survey"}'},
    "a list": {"summary.json": "[]"},
    "another file": {"notes.txt": "mine"},
    "a measured run": {"summary.json": "{}", "steps.jsonl": ""},
}


@pytest.mark.parametrize("files", STRANGERS.values(), ids=STRANGERS.keys())
def test_the_files_of_others_stay(files: dict[str, str], tmp_path: Path) -> None:
    """A stranger's summary.json was once written over."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    call = ("simulate", "--plan", "single", "--cluster", "gtx580x2", "--out", str(tmp_path))
    assert "--out" in refused(*call)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_simulation_is_written_over_by_another(tmp_path: Path) -> None:
    for batch in ("128", "64"):
        out = ("--out", str(tmp_path / "out"), "--set", f"global_batch_size={batch}")
        simulated("single", "gtx580x2", *out)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["global_batch_size"] == 64


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_folder_that_cannot_be_written_is_refused(below: str, tmp_path: Path) -> None:
    """Once a traceback."""
    (tmp_path / "file").write_text("")
    out = f"{tmp_path}/file{below}"
    message = refused("simulate", "--plan", "single", "--cluster", "gtx580x2", "--out", out)
    assert "cannot write" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
