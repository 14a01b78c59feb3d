"""Whatever number a cluster file holds, it has an answer or a message.

``restart_s: 1e12`` and ``GBps: 1e-320`` once ended in tracebacks: an exponential that overflows, a
transfer that never ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import yaml

from orchestrator.errors import InputError
from orchestrator.plan import Plan, load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import read_cluster
from orchestrator.simulate.predict import simulate

DEVICES = yaml.safe_load("""
schema_version: 1
name: full
source: test
nodes: 1
devices_per_node: 4
device:
  name: D
  memory_GiB: 40
  reserved_GiB: 1.0
  memory_GBps: 200
  tflops: {float32: 10}
  efficiency: {conv: 0.4, linear: 0.5, memory: 0.7, relu: 0.7, norm: 0.7, spatial_norm: 0.7,
               pool: 0.7, dropout: 0.7, loss: 0.5}
  kernel_overhead_us: 5
  transfer_slowdown: 0.3
  update_accesses: 5
  multiprocessors: 13
  tile_values: 8192
  power_W: 200
  dollars_per_hour: 1.0
network:
  - {name: a, size: 2, GBps: 6, device_GBps: 5, latency_us: 10, topology: switch, host: true}
  - {name: b, size: 2, GBps: 12, device_GBps: 10, latency_us: 20, topology: shared, nested: true}
collectives: {library: nccl, generation: ampere, wire: nvlink, processor: amd, channels: 24,
              start_us: 27.9, switch_GBps: 100}
reliability: {mtbf_hours_per_device: 50000, restart_s: 300, checkpoint_s: 30}
slow: [{rank: 1, factor: 1.5}]
""")
MEASURED = DEVICES | {
    "calibration": yaml.safe_load("""
  date: "2026-11-21"
  hardware: x
  model: alexnet2012
  versions: {}
  threads: 1
  neighbours: 2
  compute_slowdown: 0.3
  transfer_stretch: 1.5
  post_s: 0.0001
  jitter: 0.05
  load_s: {digits: 0.0001}
  optimizer: [{bytes: 4096, seconds: 0.001, alone: 0.0005}, {bytes: 4096000, seconds: 0.1}]
  copies: [{bytes: 4096, seconds: 0.001, alone: 0.0005}, {bytes: 40960, seconds: 0.01}]
  links: [{level: a, bytes: 4096, seconds: 0.001}, {level: a, bytes: 8192, seconds: 0.002}]
  collectives: [{kind: ALL_REDUCE, ranks: 2, bytes: 4096, seconds: 0.001},
                {kind: ALL_REDUCE, ranks: 2, bytes: 40960, seconds: 0.01}]
""")
}
EXTREMES = (5e-324, 1e-320, 1e-300, 1e-30, 1e-9, 1e-6, 1.0, 4.0, 1e6, 1e12, 1e30, 1e300, 10**39)


def numbers(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every number."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from numbers(value, (*path, key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path


def changed(tree: Any, values: dict[tuple[str | int, ...], float]) -> str:
    """The file with other numbers; whole where a whole one stood."""
    tree = json.loads(json.dumps(tree))
    for path, value in values.items():
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = int(value) if isinstance(node[path[-1]], int) else value
    return yaml.safe_dump(tree)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Exchanges, reductions and replicas."""
    return load_plan("krizhevsky2012", ["replicas=2", "optimizer_sharding=zero1"])


def finite(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def answered(plan: Plan, text: str) -> bool:
    """Whether there was an answer, all of it finite, and not a message."""
    try:
        summary = simulate(plan, model_of(plan), read_cluster(text)).summary
    except InputError:
        return False
    assert finite(summary)
    assert summary["step_time_s"] > 0
    return True


@pytest.mark.parametrize("path", [*numbers(DEVICES)], ids=lambda path: ".".join(map(str, path)))
def test_any_number_has_an_answer_or_a_message(plan: Plan, path: tuple[str | int, ...]) -> None:
    found = {value: answered(plan, changed(DEVICES, {path: value})) for value in EXTREMES}
    assert not found[10**39]


def test_any_numbers_together_have_an_answer_or_a_message(plan: Plan) -> None:
    random = Random(0)
    count = 0
    for tree in (DEVICES, MEASURED) * 100:
        allowed = [p for p in numbers(tree) if p[0] not in ("schema_version", "devices_per_node")]
        values = {path: random.choice(EXTREMES[4:-3]) for path in random.sample(allowed, 4)}
        count += answered(plan, changed(tree, values))
    assert count > 20  # and not all of them are refused


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (("network", 0, "GBps"), 1e-320, r"\[0\]\.GBps: found .*; allowed: .* from 1e-09 to"),
        (("device", "efficiency", "memory"), 3.0, r"memory: found 3.0; allowed: .*at most 1"),
        (("device", "efficiency", "linear"), 1.1, r"linear: found 1.1; allowed: .*at most 1"),
        (("device", "efficiency", "conv"), 4.5, r"conv: found 4.5; allowed: .*at most 4"),
        (("device", "reserved_GiB"), 40.0, r"reserved_GiB: found 40; allowed: less than"),
        (("slow", 0, "factor"), 1e-320, r"\[0\]\.factor: found .*; allowed: 1e-06 or more"),
        (("calibration", "links", 1, "bytes"), 4096, r"links\[1\]: found a second row of a, 4096"),
        (("calibration", "copies", 0, "alone"), 1e-320, r"copies\[0\]\.alone: found 9.*e-321"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_no_machine_has_is_refused(
    key: tuple[str | int, ...], value: float, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_cluster(changed(MEASURED, {key: value}))


def test_time_that_is_lost_to_restarts(plan: Plan) -> None:
    text = changed(DEVICES, {("reliability", "restart_s"): 1e12})
    assert simulate(plan, model_of(plan), read_cluster(text)).summary["goodput_ratio"] == 0
    assert read_cluster(changed(DEVICES, {("device", "efficiency", "conv"): 3.5}))
