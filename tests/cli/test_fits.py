"""Whether a plan fits is one answer in every command, on devices and on processors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.compare import Entry
from orchestrator.cli.compare_report import describe
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.compare import Item, compare
from orchestrator.simulate.predict import simulate
from orchestrator.simulate.trace_source import trace_source
from tests.cli.command import command

# Channels that are no multiples of 16: a processor's library copies what such convolutions read.
NET = """
from orchestrator.models import Conv, GlobalAveragePool, Linear, Model, ReLU

def build():
    layers = []
    for i in range(4):
        conv = Conv(name=f"conv{i}", channels=6, kernel=3, padding=1)
        layers += [conv, ReLU(name=f"relu{i}")]
    layers += [GlobalAveragePool(name="pool"), Linear(name="fc", features=10)]
    return Model("chain", (3, 24, 24), layers)
"""
PLAN = """
schema_version: 1
name: chain
model: {file: net.py, function: build}
global_batch_size: 1024
placement:
  - {layers: all, ranks: [0], split: none}
"""
CALIBRATION = (
    "cluster.calibration={date: 2026-11-24, hardware: h, model: m, versions: {}, threads: 1}"
)
WITHOUT_MIB, WITH_MIB = 88, 133  # what it needs without the copies and with them


def on_processors(memory_mib: float) -> tuple[str, ...]:
    """Options of a cluster of processors."""
    memory = f"cluster.device.memory_GiB={memory_mib / 1024}"
    reserved = "cluster.device.reserved_GiB=0"
    return ("--cluster", "gtx580x2", "--set", memory, "--set", reserved, "--set", CALIBRATION)


@pytest.fixture
def plan(tmp_path: Path) -> str:
    """A plan whose convolutions a processor's library copies for."""
    (tmp_path / "net.py").write_text(NET)
    path = tmp_path / "chain.yaml"
    path.write_text(PLAN)
    return str(path)


def loaded(plan: str, memory_mib: float) -> tuple[Item, Cluster]:
    settings = [x.removeprefix("cluster.") for x in on_processors(memory_mib)[3::2]]
    cluster, read = load_cluster("gtx580x2", settings), load_plan(plan)
    model = model_of(read)
    return Item(read.name, read, model, simulate(read, model, cluster)), cluster


def test_show_and_simulate_agree_on_processors(plan: str) -> None:
    """``show`` once said that it fits, without the copies."""
    shown = command("show", plan, "--json", *on_processors(1000))
    simulated = command("simulate", "--plan", plan, "--json", *on_processors(1000))
    peaks = [
        [rank["peak_memory_bytes"] for rank in json.loads(ended.out)["ranks"]]
        for ended in (shown, simulated)
    ]
    assert peaks[0] == peaks[1]
    without = json.loads(command("show", plan, "--json").out)["ranks"][0]["peak_memory_bytes"]
    assert [round(n / 2**20) for n in (without, peaks[0][0])] == [WITHOUT_MIB, WITH_MIB]
    lines = []
    for call in (("show", plan), ("simulate", "--plan", plan)):
        ended = command(*call, *on_processors(WITH_MIB - 20))
        assert ended.code == 1
        lines += re.findall(r"^rank 0 does not fit GTX 580: needs .*$", ended.out + ended.err, re.M)
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_a_remedy_is_one_on_processors_too(plan: str) -> None:
    """Two microbatches were once proposed, which are enough without the copies only."""
    options = on_processors(55)  # two microbatches need 44 MiB without them, 66 with them
    ended = command("show", plan, *options)
    remedies = re.findall(r"^  ((?:--set \S+ ?)+): ", ended.err, re.M)
    assert remedies
    for remedy in remedies:
        assert command("simulate", "--plan", plan, *remedy.split(), *options).code == 0, remedy


def test_memory_over_time_has_the_peak_that_is_predicted(plan: str) -> None:
    item, cluster = loaded(plan, 1000)
    prediction = item.prediction
    assert prediction is not None
    peak = prediction.memory[0].peak_bytes
    series = trace_source(prediction, cluster).memory[0]
    assert max(size for _, size in series) == peak
    entries = [Entry(plan, item)]
    (row,) = describe(entries, compare([item], cluster), cluster, None).items
    assert max(row.memory[0].bytes) == peak


def test_the_page_has_the_smallest_device_that_the_plan_runs_on(plan: str) -> None:
    """Once it was the smallest of the cluster."""
    item, cluster = loaded(plan, 1000)
    (device, _), *_ = cluster.kinds
    for kinds, size in (
        (((device, 1), (replace(device, memory_bytes=2**20), 1)), device.usable_bytes),
        (((replace(device, memory_bytes=2**20), 1), (device, 1)), 2**20),
    ):
        mixed = replace(cluster, kinds=kinds)
        (row,) = describe([Entry(plan, item)], compare([item], mixed), mixed, None).items
        assert row.room_bytes == size
