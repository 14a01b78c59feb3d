"""``orchestrator calibrate``: what it measures is what the simulator then asks for."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import calibrate
from orchestrator.cli.calibrate import measured_programs
from orchestrator.cli.calibrated import cluster_of
from orchestrator.errors import InputError
from orchestrator.execute.measure import Layer, Measured
from orchestrator.plan import shipped
from orchestrator.simulate.cluster import load_cluster, read_cluster
from orchestrator.simulate.cluster_write import cluster_yaml
from tests import own_kinds
from tests.cli.command import command, refused
from tests.small_network import SMALL

PLAN = f"""\
schema_version: 1
name: small
model: {SMALL}
global_batch_size: 8
placement:
  - {{layers: conv1..fc8, ranks: [0, 1], split: batch}}
"""


@pytest.mark.ray
def test_a_calibrated_machine_predicts_what_was_measured(tmp_path: Path) -> None:
    plan, cluster = tmp_path / "small.yaml", tmp_path / "here.yaml"
    plan.write_text(PLAN)
    ended = command(
        "calibrate", "--plan", str(plan), "--batch", "4", "--batch", "8", "--ranks", "2",
        "--seconds", "1", "--out", str(cluster),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    found = load_cluster(cluster)
    calibration = found.calibration
    assert calibration is not None
    assert found.assumed() == ()
    assert {row.batch for row in calibration.layers} == {2, 4}  # halves of a batch
    assert {row.direction for row in calibration.layers} == {
        "forward", "backward", "backward_input", "backward_weight",
    }  # fmt: skip
    assert all(0 < row.alone <= row.seconds for row in calibration.layers)
    assert all(row.seconds > 0 for row in calibration.links)
    assert all(row.seconds > 0 for row in calibration.collectives)
    assert 0 < calibration.post_s < 0.1
    assert calibration.load_s.keys() == {"digits", "synthetic"}

    told = command("simulate", "--plan", str(plan), "--cluster", str(cluster), "--json")
    assert (told.code, told.err) == (0, "")  # no layer had to be estimated
    predicted = json.loads(told.out)
    forward = sum(r.seconds for r in calibration.layers if (r.batch, r.direction) == (4, "forward"))
    assert predicted["step_time_s"] > forward / 2

    other = refused("simulate", "--plan", "single", "--cluster", str(cluster))
    assert "its calibration measured layers of alexnet2012" in other
    assert "orchestrator calibrate --plan single" in other


@pytest.mark.ray
def test_kinds_of_ones_own_are_measured_and_told_apart_by_their_fields(tmp_path: Path) -> None:
    """The file that it writes once named kinds that it could not be read back with."""
    plan, cluster = own_kinds.plan(tmp_path, "batch"), tmp_path / "here.yaml"
    ended = command(
        "calibrate", "--plan", plan, "--batch", "4", "--ranks", "2", "--seconds", "0.5",
        "--out", str(cluster),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = load_cluster(cluster)
    assert found.calibration is not None
    rows = {(row.kind, row.shape) for row in found.calibration.layers}
    assert ("scale", "10 > 10 start=1.0") in rows
    assert ("squash", "8x4x6 > 8x4x6") in rows
    assert found.device(0).efficiency.keys() == {"conv", "linear", "scale", "memory"}
    told = command("simulate", "--plan", plan, "--cluster", str(cluster), "--set",
                   "global_batch_size=4")  # fmt: skip
    assert told.code == 0, told.err
    assert "estimated" not in told.out


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("it has begun to measure")

    monkeypatch.setattr(calibrate, "_measure", measure)
    monkeypatch.setattr(calibrate, "load_seconds", measure)


@pytest.mark.usefixtures("nothing_measured")
def test_a_file_that_cannot_be_had_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was once told after all had been measured, or written over."""
    monkeypatch.chdir(tmp_path)
    Path("notes.yaml").write_text("mine")
    Path("sheet.yaml").write_text((shipped("cluster") / "gtx580x2.yaml").read_text())
    Path("folder.yaml").mkdir()
    for out, says in (
        ("notes.yaml", "is no calibrated cluster"),
        ("sheet.yaml", "is no calibrated cluster"),
        ("folder.yaml", "it is a folder"),
        ("my cluster.yaml", "cannot be a cluster's name"),
        (f"{'x' * 300}.yaml", "cannot be a cluster's name"),
        (f"x.{'y' * 300}", "too long"),
    ):
        before = sorted(Path().iterdir())
        assert says in refused("calibrate", "--out", out)
        assert sorted(Path().iterdir()) == before
    assert Path("notes.yaml").read_text() == "mine"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "Permission denied" in refused("calibrate", "--out", "x.yaml")


@pytest.mark.parametrize(
    ("name", "allowed"), [("a" * 100, True), ("a" * 101, False), ("0._-", True), ("-a", False)]
)
def test_a_file_has_a_name_that_a_cluster_may_have(
    name: str, allowed: bool, tmp_path: Path
) -> None:
    """The rule is the file format's, which ``calibrate`` asks before it measures."""
    text = (shipped("cluster") / "gtx580x2.yaml").read_text()
    for check in (
        lambda: read_cluster(text, overrides=[f"name={name!r}"]),
        lambda: calibrate.check_out(tmp_path / f"{name}.yaml"),
    ):
        with nullcontext() if allowed else pytest.raises(InputError, match="name"):
            check()


def measured() -> Measured:
    """One layer, two messages."""
    program = measured_programs([str(shipped("partitions") / "single.yaml")], [4], 1)[0][0]
    part = program.segments[0].parts[0].layers[0]
    copies, alike = {2**20: [1e-3], 2**22: [4e-3]}, {2**20: [1.0], 2**22: [1.0]}
    return Measured(
        layers={Layer(part, 4, "forward"): [0.01]}, layers_relief={}, optimizer=copies,
        optimizer_relief=alike, copies=copies, copies_relief=alike, posts=[1e-5],
        links={(1, 64): [1e-4], (1, 2**20): [1e-3], (2, 64): [2e-4], (2, 2**20): [4e-3]},
        reductions={64: [1e-4]}, compute_slowdown=0.1, transfer_stretch=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("machines", "shape", "levels", "told"),
    [
        ("aabb", (2, 2), ["node", "network"], ""),
        ("aaab", (2, 1), ["network"], "those of 3 and 1 ranks are written as 2 of 1"),
        ("aabbb", (2, 2), ["node", "network"], "those of 3 and 2 ranks are written as 2 of 2"),
    ],
)
def test_nodes_of_different_sizes_are_told_of(
    machines: str, shape: tuple[int, int], levels: list[str], told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The file once had no network, and nobody was told."""
    nodes = dict(enumerate(machines))
    found = dict.fromkeys(nodes, measured())
    monkeypatch.setattr(calibrate, "_measure", lambda *_: (found, nodes))
    monkeypatch.setattr(calibrate, "load_seconds", lambda *_: {"digits": 1e-4})
    out = tmp_path / "here.yaml"
    for _ in range(2):  # the second one over the first one's file
        ended = command("calibrate", "--ranks", str(len(nodes)), "--out", str(out))
        assert ended.code == 0
    cluster = load_cluster(out)
    assert (cluster.nodes, cluster.devices_per_node) == shape
    assert [level.name for level in cluster.network] == levels
    assert cluster.calibration is not None
    assert {row.level for row in cluster.calibration.links} <= set(levels)
    assert (told in cluster.summary) is (told in ended.err) is True
    assert ("warning" in ended.err) is bool(told)


def test_kinds_of_ones_own_have_an_efficiency(tmp_path: Path) -> None:
    """Only kinds that a list in the schema named were written."""
    (program,) = measured_programs([own_kinds.plan(tmp_path)], [4], 1)[0]
    layers = {
        Layer(part, 4, "forward"): [0.01]
        for segment in program.segments
        for part in segment.parts[0].layers
    }
    found = dict.fromkeys((0, 1), replace(measured(), layers=layers))
    cluster = cluster_of("here", "own", found, dict.fromkeys(found, "a"), 1, {})
    assert cluster.device(0).efficiency.keys() == {"conv", "linear", "scale", "memory"}
    read = read_cluster(cluster_yaml(cluster, "a test"))
    assert read.device(0).efficiency == pytest.approx(cluster.device(0).efficiency, rel=1e-3)


def test_bad_input_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    assert "--out" in refused("calibrate", "--out", str(tmp_path / "none" / "here.yaml"))
    assert "batch" in refused("calibrate", "--out", str(tmp_path / "x.yaml"), "--batch", "0")
    assert "nothing" in refused("calibrate", "--out", str(tmp_path / "x.yaml"), "--plan", "nothing")
