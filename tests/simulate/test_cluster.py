"""Cluster files: what is read, what is refused and how, and what the shipped ones say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.errors import InputError
from orchestrator.plan import shipped, shipped_names
from orchestrator.simulate.cluster import load_cluster, read_cluster

SHIPPED = ("dgx-a100", "dgx-h100", "dgx1-p100", "gtx580x2", "h200x8", "k20x8", "titanblack")
PODS = ("dgx-a100", "dgx-h100", "dgx1-p100", "h200x8")

TEXT = """\
schema_version: 1
name: two
source: "data sheet, 2010"
nodes: 1
devices_per_node: 2
device:
  name: GTX 580
  memory_GiB: 3
  memory_GBps: 192.4
  tflops: {float32: 1.581}
  efficiency: {conv: 0.40, linear: 0.60}
  power_W: 244
  dollars_per_hour: 0.0
network:
  - {name: pcie2, size: 2, GBps: 6.0, latency_us: 10, topology: shared}
reliability: {mtbf_hours_per_device: 50000, restart_s: 300, checkpoint_s: 30}
"""


def test_units_end_at_the_files_edge() -> None:
    cluster = read_cluster(TEXT)
    device = cluster.device(1)
    assert device.memory_bytes == 3 * 2**30
    assert device.memory_bandwidth == 192.4e9
    assert device.flops == {"float32": 1.581e12}
    assert device.efficiency == {"conv": 0.4, "linear": 0.6}
    assert (device.power_w, device.dollars_per_hour) == (244, 0)
    (level,) = cluster.network
    assert (level.bandwidth, level.device_bandwidth) == (6e9, 6e9)
    assert level.latency == pytest.approx(1e-5)
    assert cluster.reliability is not None
    assert cluster.reliability.mtbf_per_device_s == 50000 * 3600
    assert cluster.slowness(0) == 1
    assert cluster.assumed() == ()


WRONG = [
    ("memory_GiB: 3", "memory: 3", "cluster:8, device.memory", "unit is part", "memory_GiB"),
    ("GBps: 6.0, l", "Gbps: 48, l", "network[0].Gbps", "unknown key", "one eighth"),
    ("GBps: 6.0, l", "GBps: 0, l", "network[0].GBps", "found 0", "plain number"),
    ("GBps: 6.0, l", "GBps: -6, l", "network[0].GBps", "found -6", "plain number"),
    ("GBps: 6.0, l", "GBps: .inf, l", "network[0].GBps", "found inf", "plain number"),
    ("GBps: 6.0, l", "GBps: .nan, l", "network[0].GBps", "found nan", "plain number"),
    ("GBps: 6.0, l", "GBps: '6', l", "network[0].GBps", "(text)", "without quotes"),
    ("GBps: 6.0, l", "GBps: {value: -1}, l", "GBps.value", "found -1", "plain number"),
    ("GBps: 6.0, l", "GBps: {value: 1, why: x}, l", "GBps.why", "unknown key", "remove"),
    ("GBps: 6.0, l", "GBps: {assumed: true}, l", "network[0].GBps", "without value", "value"),
    ("GBps: 6.0, l", "GBps: {value: 1, assumed: false}, l", "assumed", "found false", "true"),
    ("  power_W", "  transfer_slowdown: 2\n  power_W", "transfer_slowdown", "found 2", "number"),
    ("topology: shared", "topology: shared, nested: true", "nested", "none before it", "leave"),
    ("topology: shared", "topology: ring, host: true", "[0].host", "not ring", "leave it out"),
    ("topology: shared", "topology: mesh", "network[0].topology", "'mesh'", "write it like"),
    ("size: 2", "size: 4", "cluster:15, network[0].size", "levels of 4 = 4", "size: 2"),
    ("nodes: 1", "nodes: 3", "network[0].size", "3 x 2 = 6", "write size: 6"),
    ("nodes: 1", "nodes: 0", "cluster:4, nodes", "found 0", "write it like"),
    ("conv: 0.40", "conv: 40", "device.efficiency.conv", "found 40", "plain number"),
    ("conv: 0.40", "convs: 0.4", "device.efficiency.convs", "unknown key", "mean conv"),
    ("conv: 0.40", "Linear: 0.4", "device.efficiency.Linear", "unknown key", "mean linear"),
    ("conv: 0.40", "attenton: 0.4", "device.efficiency.attenton", "unknown key", "mean attention"),
    ("conv: 0.40", "layernorm: 0.4", "device.efficiency.layernorm", "or a kind of", "layer_norm"),
    ("conv: 0.40", "embeddings: 0.4", "device.efficiency.embeddings", "unknown", "mean embedding"),
    ("conv: 0.40", "scale: 40", "device.efficiency.scale", "found 40", "plain number"),
    ("schema_version: 1", "schema_version: 2", "schema_version", "version 1 only", "newer"),
    ("reliability", "slow: [{rank: 2, factor: 2}]\nreliability", "slow[0].rank", "0 to 1", "below"),
    ("reliability", "slow: [{rank: 1, factor: 0}]\nreliability", "slow[0].factor", "found 0", ""),
    (
        'source: "data sheet, 2010"',
        "summary: x",
        "device.memory_GiB",
        "without a source",
        "assumed",
    ),
    ("nodes: 1", "nodes: 1\nassumed: true", "assumed", "beside source", "keep source"),
]


@pytest.mark.parametrize(("old", "new", "place", "message", "remedy"), WRONG)
def test_wrong_clusters(old: str, new: str, place: str, message: str, remedy: str) -> None:
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        read_cluster(TEXT.replace(old, new, 1))
    told = str(caught.value)  # a key with another unit is unknown, and ours is then missing
    assert place in told
    assert message in told
    assert remedy in told


def test_devices_that_differ() -> None:
    device = TEXT[TEXT.index("device:") : TEXT.index("network")]
    inner = "".join(f"    {line}\n" for line in device.splitlines()[1:])
    faster = inner.replace("GTX 580", "GTX 680").replace("1.581", "3.09")
    mixed = f"devices:\n  - count: 1\n    device:\n{inner}  - count: 1\n    device:\n{faster}"
    text = TEXT.replace(device, mixed)
    cluster = read_cluster(text)
    assert [cluster.device(rank).name for rank in (0, 1)] == ["GTX 580", "GTX 680"]
    assert cluster.device(1).flops["float32"] == 3.09e12
    with pytest.raises(InputError, match=r"counts that add up to 2; .* = 4"):
        read_cluster(text, overrides=["nodes=2"])
    with pytest.raises(InputError, match="device and devices"):
        read_cluster(text + device)


@pytest.mark.parametrize(
    "kind", ["scale", "attention", "prelu", "elu", "conv2d", "conv2", "bilinear", "group_norm"]
)
def test_any_kind_of_layer_may_have_an_efficiency(kind: str) -> None:
    """The note of a prediction asked for kinds that the file then refused."""
    figure = f"{kind}: {{value: 0.5, assumed: true}}"
    cluster = read_cluster(TEXT.replace("linear: 0.60", f"linear: 0.60, {figure}"))
    assert cluster.device(0).efficiency == {"conv": 0.4, "linear": 0.6, kind: 0.5}
    assert cluster.assumed() == (f"device.efficiency.{kind}",)
    set_so = read_cluster(TEXT, overrides=[f"device.efficiency.{kind}=0.5"])
    assert set_so.device(0).efficiency[kind] == 0.5


def test_the_nearest_source_counts() -> None:
    text = TEXT.replace("memory_GiB: 3", "memory_GiB: {value: 3, assumed: true}")
    text = text.replace("power_W: 244", "power_W: {value: 244, source: 'measured, 2026'}")
    text = text.replace("linear: 0.60", "linear: 0.60, assumed: true")
    cluster = read_cluster(text, overrides=["network.0.GBps=12"])
    assert cluster.assumed() == (
        "device.memory_GiB", "device.efficiency.conv", "device.efficiency.linear",
    )  # fmt: skip
    by_key = {p.key: p.source for p in cluster.provenance}
    assert by_key["device.power_W"] == "measured, 2026"
    assert by_key["device.memory_GBps"] == "data sheet, 2010"
    assert by_key["network[0].GBps"] == "--set cluster.network.0.GBps=12"


def test_a_figure_set_on_the_command_line_needs_no_source() -> None:
    cluster = load_cluster("gtx580x2", ["device.memory_GiB=6"])
    assert cluster.device(0).memory_bytes == 6 * 2**30


def test_ranks_are_counted_from_the_inside_out() -> None:
    cluster = load_cluster("k20x8")
    assert [cluster.level_between(0, other) for other in (1, 3, 4, 7)] == [0, 0, 1, 1]
    pod = load_cluster("dgx-a100", ["nodes=4"])
    assert [pod.level_between(0, other) for other in (7, 8, 31)] == [0, 1, 1]
    assert pod.node(17) == 2


def test_more_ranks_than_devices() -> None:
    cluster = load_cluster("k20x8")
    cluster.check_room(8)
    with pytest.raises(
        InputError, match=r"needs 12 ranks, cluster k20x8 has 1 x 8 = 8(.|\n)*nodes=2"
    ):
        cluster.check_room(12)


def test_a_calibration_is_read() -> None:
    rows = """calibration:
  date: 2026-11-21
  hardware: 2-core Xeon
  model: alexnet2012
  versions: {torch: 2.13.0}
  threads: 1
  layers:
    - {kind: conv, shape: 3x9x9 > 4x7x7 kernel 3 stride 1, dtype: float32, batch: 16, pass: forward,
       seconds: 0.2}
    - {kind: conv, shape: 3x9x9 > 4x7x7 kernel 3 stride 1, dtype: float32, batch: 8, pass: forward,
       seconds: 0.1}
  optimizer: [{bytes: 4096, seconds: 0.001}]
  links: [{level: pcie2, bytes: 4096, seconds: 0.001}]
  collectives: [{kind: ALL_REDUCE, ranks: 2, bytes: 4096, seconds: 0.001, spread: 0.1}]
"""
    calibration = read_cluster(TEXT + rows).calibration
    assert calibration is not None
    shape = "3x9x9 > 4x7x7 kernel 3 stride 1"
    assert [r.batch for r in calibration.rows("conv", shape, "float32", "forward")] == [8, 16]
    assert calibration.rows("conv", shape, "float32", "backward") == ()
    assert calibration.collectives[0].spread == 0.1
    with pytest.raises(InputError, match=r"calibration\.layers\[0\]\.pass"):
        read_cluster(TEXT + rows.replace("pass: forward", "pass: sideways"))
    with pytest.raises(InputError, match="found 0"):
        read_cluster(TEXT + rows.replace("seconds: 0.2", "seconds: 0"))
    with pytest.raises(InputError, match="a date such as"):
        read_cluster(TEXT + rows.replace("2026-11-21", "yesterday"))


def test_an_unknown_cluster_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="did you mean k20x8"):
        load_cluster("k20x9")


# -- the shipped files ----------------------------------------------------------------------------


def test_all_shipped_clusters_are_tested() -> None:
    """A cluster that was in none of the tests' tables once went unnoticed."""
    assert set(SHIPPED) == set(shipped_names("cluster"))
    of_nodes = {name for name in SHIPPED if load_cluster(name).library is not None}
    assert set(PODS) == of_nodes


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_figure_has_a_source_and_its_date_or_is_assumed(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.summary
    assert cluster.provenance
    for figure in cluster.provenance:
        dated = r"\b20\d\d\b|@[0-9a-f]{7}\b|\(date not recorded\)"  # a year, a commit, or said so
        assert figure.source is None or re.search(dated, figure.source), figure


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_follows_the_published_json_schema(name: str) -> None:
    folder = shipped("cluster")
    schema = json.loads((folder / "cluster.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((folder / f"{name}.yaml").read_text()), schema)


@pytest.mark.parametrize("name", PODS)
def test_pods_grow_with_nodes(name: str) -> None:
    cluster = load_cluster(name, ["nodes=512"])
    assert cluster.device_count == 4096
    assert cluster.network[-1].size == 512
    assert cluster.network[-1].bandwidth == pytest.approx(
        cluster.network[-1].device_bandwidth * (4 if name == "dgx1-p100" else 8)
    )


def test_the_json_schema_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.simulate"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (shipped("cluster") / "cluster.schema.json").read_text()


def test_a_path_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    assert load_cluster(path).label == str(path)
