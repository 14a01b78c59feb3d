"""``orchestrator calibrate``: what it measures is what the simulator then asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.simulate.cluster import load_cluster
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
    assert ("scale", "10 > 10 start=1.0 groups 10") in rows
    assert ("squash", "8x4x6 > 8x4x6") in rows
    assert found.device(0).efficiency.keys() == {"conv", "linear", "memory"}
    told = command("simulate", "--plan", plan, "--cluster", str(cluster), "--set",
                   "global_batch_size=4")  # fmt: skip
    assert told.code == 0, told.err
    assert "estimated" not in told.out


def test_bad_input_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    assert "--out" in refused("calibrate", "--out", str(tmp_path / "none" / "here.yaml"))
    assert "batch" in refused("calibrate", "--out", str(tmp_path / "x.yaml"), "--batch", "0")
    assert "nothing" in refused("calibrate", "--out", str(tmp_path / "x.yaml"), "--plan", "nothing")
