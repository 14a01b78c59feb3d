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
from torch import Tensor, cuda

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

    def follow(self, channel: Channel, mark: Mark) -> None:
        """What comes next on ``channel`` starts after the mark."""

    def reached(self, mark: Mark) -> bool:
        """Whether the device is past the mark; does not wait."""

    def wait(self, mark: Mark) -> None:
        """Block the host until the device has reached the mark."""

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        """Queue what is called inside on this channel."""

    def seconds(self, mark: Mark) -> float:
        """A mark on the host's clock; waits until the device has reached it."""

    def between(self, begin: Mark, end: Mark) -> float:
        """Seconds from one mark to another; waits until the device has reached both."""

    def staging(self, like: Tensor) -> Tensor | None:
        """A host tensor of this shape and dtype, from which :meth:`load` need not wait; None where
        it never waits. Making one may stop the whole device: not within a step."""

    def load(self, tensor: Tensor) -> Tensor:
        """Bring a tensor from the host. Unless it is (a part of) a staging tensor, the host may
        wait for the lane of the computations."""


class Cpu:
    """The processor: everything happens at once where it is called."""

    torch = torch.device("cpu")

    def mark(self, channel: Channel) -> float:
        return time.perf_counter()

    def order(self, channel: Channel, after: Channel) -> None:
        pass

    def follow(self, channel: Channel, mark: float) -> None:
        pass

    def reached(self, mark: float) -> bool:
        return True

    def wait(self, mark: float) -> None:
        pass

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, mark: float) -> float:
        return mark

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def staging(self, like: Tensor) -> None:
        return None

    def load(self, tensor: Tensor) -> Tensor:
        return tensor


class Cuda:
    """A GPU: a stream per channel, events for times.

    Args:
        tf32: let float32 products round their factors to TensorFloat-32, 10 bits of mantissa.
    """

    def __init__(self, index: int, *, tf32: bool = False) -> None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32  # torch's default is True for convolutions
        self.torch = torch.device("cuda", index)
        cuda.set_device(self.torch)
        compute = cuda.current_stream(self.torch)
        self.streams: dict[Channel, cuda.Stream] = {COMPUTE: compute}
        self._zero = cuda.Event(enable_timing=True)
        compute.synchronize()
        self._zero.record(compute)
        compute.synchronize()
        self._zero_seconds = time.perf_counter()

    def stream(self, channel: Channel) -> cuda.Stream:
        """A channel's stream, made when it is first asked for."""
        if channel not in self.streams:
            self.streams[channel] = cuda.Stream(self.torch)
        return self.streams[channel]

    def mark(self, channel: Channel) -> cuda.Event:
        event = cuda.Event(enable_timing=True)
        event.record(self.stream(channel))
        return event

    def order(self, channel: Channel, after: Channel) -> None:
        self.stream(channel).wait_stream(self.stream(after))

    def follow(self, channel: Channel, mark: cuda.Event) -> None:
        self.stream(channel).wait_event(mark)

    def reached(self, mark: cuda.Event) -> bool:
        return bool(mark.query())

    def wait(self, mark: cuda.Event) -> None:
        mark.synchronize()

    def synchronize(self) -> None:
        """Block the host until the device has done all that is queued on any stream."""
        cuda.synchronize(self.torch)

    @property
    def name(self) -> str:
        """The GPU's, as its maker has it."""
        return cuda.get_device_name(self.torch)

    def on(self, channel: Channel) -> AbstractContextManager[Any]:
        return cuda.stream(self.stream(channel))

    def seconds(self, mark: cuda.Event) -> float:
        mark.synchronize()
        return self._zero_seconds + float(self._zero.elapsed_time(mark)) / 1e3

    def between(self, begin: cuda.Event, end: cuda.Event) -> float:
        end.synchronize()  # its distance to a near event keeps its digits, to the zero it would not
        return float(begin.elapsed_time(end)) / 1e3

    def staging(self, like: Tensor) -> Tensor:
        with cuda.device(self.torch):  # the current one is a thread's own, and this may be any's
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def load(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.torch, non_blocking=True)
