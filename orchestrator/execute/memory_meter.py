"""How much memory a rank's tensors need: the allocator's peak, on a GPU as on a processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from orchestrator.execute.device import Cuda


class MemoryMeter:
    """On a GPU, what torch has allocated at most since the meter was made or restarted.

    On a processor torch keeps no such count, so one step is recorded by its profiler: what was
    there before it, and the most that it has added.
    """

    def __init__(self, device: Cuda | None) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.largest = 0
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device.torch)

    def peak_bytes(self) -> int:
        """Peak so far, in bytes; 0 on a processor before a step was watched."""
        if self.device is not None:
            return torch.cuda.max_memory_allocated(self.device.torch)
        return self.largest

    @contextmanager
    def watching(self, held: int) -> Iterator[None]:
        """A step, which recording makes slower on a processor; ``held``: bytes alive before it."""
        if self.device is not None:
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            yield
        self.largest = max(self.largest, held + most_added(recorded))


def most_added(recorded: profile) -> int:
    """The most bytes of tensors that were alive at once, of those made under the profiler."""
    alive: dict[int, int] = {}
    now = most = 0
    for _, address, amount in allocations(recorded):
        if amount > 0:
            alive[address] = amount
            now += amount
            most = max(most, now)
        else:
            now -= alive.pop(address, 0)  # 0: it was there before
    return most


def allocations(recorded: profile) -> list[tuple[int, int, int]]:
    """When (ns), address and bytes (negative: released) of what was allocated, in order."""
    return sorted(
        (event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size)
        for event in events(recorded)
        if event.tag == _EventType.Allocation
    )


def events(recorded: profile) -> Iterator[Any]:
    """Everything that the profiler has recorded, in no order."""
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    pending: list[Any] = list(results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        yield event
