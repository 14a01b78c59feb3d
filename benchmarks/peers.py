"""Side by side with PyTorch's own: ``python -m benchmarks.peers [--quick] [--only WORD]``.

Every comparison trains the same network from the same weights on the same batch on both sides, in
the same processes, with one thread a rank, and refuses if the losses of the first steps differ.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.our_side import OurRank, Setting, ops_of
from benchmarks.pairing import Row, Side, compare, table
from benchmarks.torch_side import (
    PipelineRank,
    columns_dtensor,
    ddp,
    megatron_dtensor,
    single,
)
from benchmarks.workers import Job, run_jobs
from orchestrator.plan import Plan, load_plan, read_plan


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        network: overrides of every AlexNet plan.
        pipeline: further overrides of the pipelines.
        fc: overrides of the fully-connected part's plans.
        rounds: timed steps of each side.
    """

    network: tuple[str, ...]
    pipeline: tuple[str, ...]
    fc: tuple[str, ...]
    rounds: int


FULL = Size(("global_batch_size=16",), ("n_microbatches=4",), ("global_batch_size=128",), 7)
QUICK = Size(
    ("global_batch_size=16", "model.width=0.25", "model.image_size=96", "model.classes=100"),
    ("n_microbatches=4",),
    ("global_batch_size=32", "model.width=0.25"),
    7,
)

_FC_PLAN = """
schema_version: 1
name: {name}
summary: the fully-connected layers, split over two ranks
model: {{file: fc_net.py, function: build}}
global_batch_size: 128
placement:
"""
COLUMNS_FC = f"""{_FC_PLAN.format(name="columns-fc")}
  - {{layers: fc6..fc8, ranks: [0, 1], split: channel}}
"""
MEGATRON_FC = f"""{_FC_PLAN.format(name="megatron-fc")}
  - {{layers: fc6..relu6, ranks: [0, 1], split: channel}}
  - {{layers: fc7..relu7, ranks: [0, 1], split: input}}
  - {{layers: fc8, ranks: [0, 1], split: channel}}
"""
LENET = """
schema_version: 1
name: lenet5
summary: a small network, so that a step is hardly more than its ops
model: {name: lenet5}
global_batch_size: 32
n_microbatches: 8
schedule: ZBVZeroBubble
placement:
  - {layers: conv1..pool1, ranks: [0], split: none}
  - {layers: conv2..relu2, ranks: [1], split: none}
  - {layers: pool2..relu3, ranks: [1], split: none}
  - {layers: fc4..fc5, ranks: [0], split: none}
"""
# The schedules that torch has, too; ZB-H1 is not one of them.
_PIPELINE_PLANS = {
    "GPipe": "pipeline-gpipe",
    "1F1B": "pipeline-1f1b",
    "Interleaved1F1B": "pipeline-interleaved",
    "LoopedBFS": "pipeline-interleaved",
    "InterleavedZeroBubble": "pipeline-interleaved",
    "ZBVZeroBubble": "pipeline-zero-bubble",
    "DualPipeV": "pipeline-zero-bubble",
}

Comparison = Callable[[int, Size], list[Row]]


def _fc_plan(text: str, size: Size) -> Plan:
    return read_plan(text, "benchmark plan", Path(__file__).parent, size.fc)


def compare_single(rank: int, size: Size) -> list[Row]:
    """One device against a plain training loop, with torch's response norm, with ours."""
    setting = Setting(load_plan("single", size.network), rank)
    sides: list[Side] = [
        OurRank(setting),
        single(setting, "torch"),
        single(setting, "ours"),
        single(setting, "ours", fused=False),
    ]
    return compare("one device", sides, size.rounds)


def compare_data_parallel(rank: int, size: Size) -> list[Row]:
    """Half of the batch each, gradients summed."""
    setting = Setting(load_plan("data-parallel", size.network), rank)
    return compare("data parallel", [OurRank(setting), ddp(setting)], size.rounds)


def compare_pipeline(schedule: str, rank: int, size: Size) -> list[Row]:
    """A schedule against torch's of the same name: same stages, same microbatches."""
    overrides = (*size.network, *size.pipeline, f"schedule={schedule}")
    setting = Setting(load_plan(_PIPELINE_PLANS[schedule], overrides), rank)
    sides: list[Side] = [OurRank(setting), PipelineRank(setting)]
    return compare(f"pipeline {schedule}", sides, size.rounds)


def compare_columns(rank: int, size: Size) -> list[Row]:
    """Every fully-connected layer split on its output."""
    setting = Setting(_fc_plan(COLUMNS_FC, size), rank)
    sides: list[Side] = [OurRank(setting), columns_dtensor(setting)]
    return compare("fc columns", sides, size.rounds)


def compare_megatron(rank: int, size: Size) -> list[Row]:
    """fc6 split on its output and fc7 on its input."""
    setting = Setting(_fc_plan(MEGATRON_FC, size), rank)
    sides: list[Side] = [OurRank(setting), megatron_dtensor(setting)]
    return compare("fc output, input", sides, size.rounds)


def compare_timeline(small: bool, rank: int, size: Size) -> list[Row]:
    """Our own step with every op's times taken and read, and without."""
    overrides = (*size.network, *size.pipeline)
    plan = read_plan(LENET) if small else load_plan("pipeline-zero-bubble", overrides)
    setting = Setting(plan, rank)
    sides = [
        OurRank(setting, name="recording"),
        OurRank(setting, clock=False, name="not recording"),
    ]
    what = f"timeline, {setting.model.name}, {len(ops_of(sides[0]))} ops"
    return compare(what, sides, 5 * size.rounds if small else size.rounds)


COMPARISONS: dict[str, tuple[int, Comparison]] = {
    "one device": (1, compare_single),
    "data parallel": (2, compare_data_parallel),
    **{f"pipeline {name}": (2, partial(compare_pipeline, name)) for name in _PIPELINE_PLANS},
    "fc columns": (2, compare_columns),
    "fc output, input": (2, compare_megatron),
    "timeline": (2, partial(compare_timeline, False)),
    "timeline, small": (2, partial(compare_timeline, True)),
}


def run(size: Size, only: str = "") -> list[Row]:
    """The rows of all comparisons whose name contains ``only``; a line of progress each."""
    rows: list[Row] = []
    for world_size in (1, 2):
        jobs = [
            Job(name, comparison, size)
            for name, (ranks, comparison) in COMPARISONS.items()
            if ranks == world_size and only in name
        ]
        start = time.monotonic()
        for outcome in run_jobs(jobs, world_size):
            took = time.monotonic() - start
            print(f"  {outcome.name}: {took:.0f} s", file=sys.stderr, flush=True)
            start = time.monotonic()
            if outcome.reason:
                rows.append(Row(outcome.name, "", "", reason=outcome.reason))
            else:
                assert isinstance(outcome.result, list)
                rows += outcome.result
    return rows


def main(arguments: list[str]) -> None:
    """Run the comparisons and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks, under a minute")
    parser.add_argument("--only", default="", metavar="WORD", help="comparisons with this in name")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    print(
        f"peers: torch {torch.__version__}, {platform.machine()}, "
        f"1 thread a rank, gloo; {', '.join(size.network + size.pipeline)}",
        flush=True,
    )
    print(table(run(size, chosen.only)))


if __name__ == "__main__":
    main(sys.argv[1:])
