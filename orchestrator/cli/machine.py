"""Whether this machine has the memory that a program's ranks need at the very least."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan
from orchestrator.program import Precision, compile_plan
from orchestrator.simulate.memory import peak_memory

_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
_ALWAYS = ("parameters", "optimizer_state")  # what every rank holds all the time


def memory_bytes() -> int:
    """Of this machine, or of the container."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or no limit
        found = min(found, int(_LIMIT.read_text()))
    return found


def check_memory(
    plan: Plan, model: Model, dtype: str | Precision, *, process_bytes: int = 0
) -> None:
    """Refuse what cannot run here, before it is compiled for every rank.

    What all ranks hold all the time, and what the largest one holds beside it: ranks need not all
    be at their peak at once.

    Args:
        dtype: of weights and activations.
        process_bytes: of every rank's own process.

    Raises:
        InputError: the machine has less memory.
    """
    program = compile_plan(plan, model, dtype=dtype, fold=True)
    copies = program.replicas if program.folded else 1
    peaks = peak_memory(program, processor=True)
    held = [sum(rank.parts.get(name, 0) for name in _ALWAYS) for rank in peaks]
    beside = max(rank.peak_bytes - h for rank, h in zip(peaks, held, strict=True))
    need = copies * sum(h + process_bytes for h in held) + beside
    have = memory_bytes()
    if need > have:
        ranks = f"{plan.world_size:,} rank{'s' * (plan.world_size > 1)}"
        raise InputError(
            f"{ranks} need {_gib(need)} at least; this machine has {_gib(have)}",
            plan.location(()),
            "a smaller batch or model, fewer ranks or replicas, or more machines",
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
