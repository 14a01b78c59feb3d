"""Clocks and lanes of a device: what "after", "at the same time" and "when" mean on it.

On a CPU computations happen where they are called, and a mark is the wall clock. On a GPU every
lane is a stream, a mark is an event on it, "after" is one stream waiting for another, and nothing
waits for the device until the step's times are read.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.program.ops import COMPUTE, RECEIVE, REDUCE, SEND

Mark = Any


class Device(Protocol):
    """Where a rank computes."""

    torch: torch.device

    def mark(self, lane: str) -> Mark:
        """The moment that the lane has now reached."""

    def order(self, lane: str, after: str) -> None:
        """What comes next on ``lane`` starts after what was last queued on ``after``."""

    def on(self, lane: str) -> AbstractContextManager[Any]:
        """Queue what is called inside on this lane."""

    def seconds(self, mark: Mark) -> float:
        """A mark on the host's clock; waits until the device has reached it."""

    def between(self, begin: Mark, end: Mark) -> float:
        """Seconds from one mark to another; waits until the device has reached both."""

    def load(self, tensor: Tensor) -> Tensor:
        """Bring a tensor from the host; the host does not wait."""


class Cpu:
    """The processor: everything happens at once where it is called."""

    torch = torch.device("cpu")

    def mark(self, lane: str) -> float:
        return time.perf_counter()

    def order(self, lane: str, after: str) -> None:
        pass

    def on(self, lane: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, mark: float) -> float:
        return mark

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def load(self, tensor: Tensor) -> Tensor:
        return tensor


class Cuda:
    """A GPU: a stream per lane, events for times."""

    def __init__(self, index: int) -> None:
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        compute = torch.cuda.current_stream(self.torch)
        self.streams = {COMPUTE: compute}
        for lane in (SEND, RECEIVE, REDUCE):
            self.streams[lane] = torch.cuda.Stream(self.torch)
        self._zero = torch.cuda.Event(enable_timing=True)
        compute.synchronize()
        self._zero.record(compute)
        compute.synchronize()
        self._zero_seconds = time.perf_counter()

    def mark(self, lane: str) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.streams[lane])
        return event

    def order(self, lane: str, after: str) -> None:
        self.streams[lane].wait_stream(self.streams[after])

    def on(self, lane: str) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.streams[lane])

    def seconds(self, mark: torch.cuda.Event) -> float:
        mark.synchronize()
        return self._zero_seconds + float(self._zero.elapsed_time(mark)) / 1e3

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()  # its distance to a near event keeps its digits, to the zero it would not
        return float(begin.elapsed_time(end)) / 1e3

    def load(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.torch, non_blocking=True)
