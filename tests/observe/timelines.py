"""Timelines by hand: when each op of a small program was ready, started and ended."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.observe.timeline import StepTimes
from orchestrator.program import Program
from tests.program.small import LINEAR, small_program

# Ops of rank 0 below; the like of rank 1 follow each with the next id.
#   data     0F0  0B0  0ALL_REDUCE0  0STEP0
#   sharded  0F0  0B0  0REDUCE_SCATTER0  0STEP0  0ALL_GATHER0
DATA = ("layers: a..c, ranks: [0, 1], split: batch",)
COLUMNS = (
    "layers: a..b, ranks: [0, 1], split: channel",
    "layers: c, ranks: [0], split: none",
)
STAGES = (
    "layers: a..relu, ranks: [0], split: none",
    "layers: b..c, ranks: [1], split: none",
)
PROGRAMS: dict[str, Program] = {
    "data": small_program(LINEAR, *DATA),
    "sharded": small_program(LINEAR, *DATA, more="optimizer_sharding: zero1"),
    "columns": small_program(LINEAR, *COLUMNS),
    "stages": small_program(LINEAR, *STAGES, more="n_microbatches: 2"),
    "replicas": small_program(LINEAR, *STAGES, more="n_microbatches: 2\nreplicas: 2"),
    # Batch parts whose gradients are summed, and exchanges between the same two ranks.
    "both": small_program(
        LINEAR,
        "layers: a..relu, ranks: [0, 1], split: batch",
        "layers: b..c, ranks: [0, 1], split: channel",
    ),
}

Moments = Mapping[str, tuple[float, float, float]]


def step_times(
    program: Program, moments: Moments, finish: Mapping[int, float], begin: float = 0.0
) -> StepTimes:
    """A step of every op's (ready, start, end).

    Args:
        moments: by rank and op, such as ``0 1SEND_F0``; all of them, and no other.
        finish: by rank, when it left the step.
    """
    ids = {f"{op.rank} {op}": op.id for op in program.ops()}
    assert moments.keys() == ids.keys(), sorted(moments.keys() ^ ids.keys())
    ready, start, end = (
        [moments[name][part] for name in sorted(ids, key=ids.__getitem__)] for part in range(3)
    )
    return StepTimes(0, ready, start, end, dict.fromkeys(finish, begin), dict(finish))
