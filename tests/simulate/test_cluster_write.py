"""A calibrated cluster file loads back to what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.simulate.calibration import (
    BytesTime,
    Calibration,
    CollectiveTime,
    LayerTime,
    LinkTime,
)
from orchestrator.simulate.cluster import Cluster, Device, Level, load_cluster
from orchestrator.simulate.cluster_write import cluster_yaml


def test_a_written_cluster_loads_back(tmp_path: Path) -> None:
    calibration = Calibration(
        date="2026-11-21", hardware="a processor", model="alexnet2012", versions={"torch": "2"},
        threads=1, neighbours=2, compute_slowdown=0.25, transfer_stretch=1.5, post_s=0.0002,
        jitter=0.05, load_s={"digits": 0.00025},
        layers=(LayerTime("conv", "3x8x8 > 4x8x8 kernel 3", "float32", 8, "forward", 0.125, 0.5),),
        optimizer=(BytesTime(4096, 0.25),), copies=(BytesTime(8192, 0.125, 0.0625),),
        links=(LinkTime("node", 4096, 0.5),),
        collectives=(CollectiveTime("ALL_REDUCE", 2, 4096, 0.75),),
    )  # fmt: skip
    device = Device("1 thread", 2**33, 1e10, {"float32": 4e10}, {"conv": 1.0, "memory": 1.0})
    cluster = Cluster(
        "here", 1, 2, ((device, 2),), (Level("node", 2, 5e8, 2.5e-4, "switch", 5e8),),
        calibration=calibration,
    )  # fmt: skip
    path = tmp_path / "here.yaml"
    path.write_text(cluster_yaml(cluster, "a test"))
    found = load_cluster(path)
    assert found.calibration == calibration
    assert found.network == cluster.network
    assert found.device(0).flops == pytest.approx(device.flops)
    assert not found.assumed()
