"""Clocks and channels of a device: what "after", "at the same time" and "when" mean on it.

On a CPU computations happen where they are called, and a mark is the wall clock. On a GPU every
channel is a stream, a mark is an event on it, "after" is one stream waiting for another, and
nothing waits for the device until the step's times are read.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.program.boundary import Route
from orchestrator.program.ops import COMPUTE

Mark = Any
Channel = str | Route


class Device(Protocol):
    """Where a rank computes."""

    torch: torch.device

    def mark(self, channel: Channel) -> Mark:
        """The moment that the channel has now reached."""

    def order(self, channel: Channel, after: Channel) -> None:
        """What comes next on ``channel`` starts after what was last queued on ``after``."""

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        """Queue what is called inside on this channel."""

    def seconds(self, mark: Mark) -> float:
        """A mark on the host's clock; waits until the device has reached it."""

    def between(self, begin: Mark, end: Mark) -> float:
        """Seconds from one mark to another; waits until the device has reached both."""

    def load(self, tensor: Tensor) -> Tensor:
        """Bring a tensor from the host; the host does not wait."""


class Cpu:
    """The processor: everything happens at once where it is called."""

    torch = torch.device("cpu")

    def mark(self, channel: Channel) -> float:
        return time.perf_counter()

    def order(self, channel: Channel, after: Channel) -> None:
        pass

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, mark: float) -> float:
        return mark

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def load(self, tensor: Tensor) -> Tensor:
        return tensor


class Cuda:
    """A GPU: a stream per channel, events for times."""

    def __init__(self, index: int) -> None:
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        compute = torch.cuda.current_stream(self.torch)
        self.streams: dict[Channel, torch.cuda.Stream] = {COMPUTE: compute}
        self._zero = torch.cuda.Event(enable_timing=True)
        compute.synchronize()
        self._zero.record(compute)
        compute.synchronize()
        self._zero_seconds = time.perf_counter()

    def stream(self, channel: Channel) -> torch.cuda.Stream:
        """A channel's stream, made when it is first asked for."""
        if channel not in self.streams:
            self.streams[channel] = torch.cuda.Stream(self.torch)
        return self.streams[channel]

    def mark(self, channel: Channel) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream(channel))
        return event

    def order(self, channel: Channel, after: Channel) -> None:
        self.stream(channel).wait_stream(self.stream(after))

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream(channel))

    def seconds(self, mark: torch.cuda.Event) -> float:
        mark.synchronize()
        return self._zero_seconds + float(self._zero.elapsed_time(mark)) / 1e3

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()  # its distance to a near event keeps its digits, to the zero it would not
        return float(begin.elapsed_time(end)) / 1e3

    def load(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.torch, non_blocking=True)
