"""A GPU without a GPU: torch.cuda's streams and events, which only note who waits for whom.

Operations run on the processor where they are called, so results are right. A trace (see
:mod:`tests.execute.gpu_trace`) records what each of them reads, writes and allocates, and on which
stream a GPU would have done it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, local
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orchestrator.execute.device import Cuda
from tests.execute.gpu_trace import HOST, Access, Line, Storage, Trace
from tests.execute.turns import Turns

DEFAULT = "compute"  # torch's default stream; the interpreter computes on it


class FakeStream:
    """As ``torch.cuda.Stream``."""

    def __init__(self, gpu: FakeCuda, line: Line) -> None:
        self.gpu, self.line = gpu, line

    def wait_event(self, event: FakeEvent) -> None:
        self.gpu.trace.add(self.line, "wait_event", event.node)

    def wait_stream(self, stream: FakeStream) -> None:
        self.gpu.trace.add(self.line, "wait_stream", self.gpu.trace.last.get(stream.line))

    def synchronize(self) -> None:
        self.gpu.host_waits(self.line.rank, self.gpu.trace.last.get(self.line))


class FakeEvent:
    """As ``torch.cuda.Event``."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self.rank = 0
        self.node: int | None = None
        self.seconds = 0.0

    def record(self, stream: FakeStream) -> None:
        self.rank, self.node = stream.line.rank, self.gpu.trace.last.get(stream.line)
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        self.gpu.host_waits(self.rank, self.node)

    def query(self) -> bool:
        """Where the GPU is prompt: as soon as nothing is missing. Where it is slow: not yet."""
        if self.gpu.prompt and self.gpu.trace.settled(self.node):
            self.gpu.host_waits(self.rank, self.node)
            return True
        return False

    def elapsed_time(self, end: FakeEvent) -> float:
        """Milliseconds."""
        return (end.seconds - self.seconds) * 1e3


class FakeCuda:
    """Stands in for ``torch.cuda``, for all ranks of this process.

    Args:
        prompt: whether what has been queued is over when the host asks for it, or as late as may
            be.

    Attributes:
        streams: by rank, the current one.
    """

    def __init__(self, trace: Trace, turns: Turns, *, prompt: bool = False) -> None:
        self.trace, self.turns, self.prompt = trace, turns, prompt
        self.streams: dict[int, FakeStream] = {}
        self.made: dict[int, int] = {}
        self.known: dict[int, Storage] = {}  # by address of the living
        self.arriving: dict[int, list[int]] = {}  # by storage, ends of transfers that write it
        self._own = local()

    @contextmanager
    def rank(self, rank: int) -> Iterator[None]:
        """This thread is the host of a rank."""
        self._own.rank = rank
        self.streams[rank] = FakeStream(self, Line(rank, DEFAULT))
        with self.turns.taking_part(rank), _Watch(self):
            yield

    @property
    def running(self) -> int:
        """The rank whose host is running; also for threads that it waits for."""
        return int(getattr(self._own, "rank", self.turns.now))

    # -- torch.cuda ---------------------------------------------------------------------------

    def set_device(self, device: torch.device) -> None:
        """Ranks here have a thread each."""

    def get_device_name(self, device: torch.device) -> str:
        return "none"

    def current_stream(self, device: torch.device | None = None) -> FakeStream:
        return self.streams[self.running]

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        number = self.made[self.running] = self.made.get(self.running, 0) + 1
        return FakeStream(self, Line(self.running, f"stream {number}"))

    def Event(self, *, enable_timing: bool = False) -> FakeEvent:  # noqa: N802
        return FakeEvent(self)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        rank = self.running
        before, self.streams[rank] = self.streams[rank], stream
        try:
            yield
        finally:
            self.streams[rank] = before

    def synchronize(self, device: torch.device | None = None) -> None:
        rank = self.running
        for line, node in list(self.trace.last.items()):
            if line.rank == rank and line.name != HOST:
                self.host_waits(rank, node)

    # -- memory -------------------------------------------------------------------------------

    def host_waits(self, rank: int, node: int | None) -> None:
        """The host of a rank (or a thread beside it) waits for a node."""
        own = getattr(self._own, "rank", None)
        self.turns.wait(own, lambda: self.trace.settled(node))
        host = HOST if own is not None else f"{HOST} {current_thread().name}"
        self.trace.add(Line(rank, host), "host waits", node)

    def storage(self, tensor: Tensor, line: Line | None = None) -> Storage:
        """The block behind a tensor; one that is not known yet is allocated on ``line``, or of the
        host."""
        held = tensor.untyped_storage()
        address = held._cdata
        if address not in self.known:
            line = line or Line(self.running, HOST)
            self.known[address] = self.trace.allocated(line, f"a {tuple(tensor.shape)}")
            weakref.finalize(held, self._released, address).atexit = False
        return self.known[address]

    def _released(self, address: int) -> None:
        storage = self.known.pop(address)
        self.arriving.pop(storage.number, None)
        self.trace.released(storage)

    def access(self, tensor: Tensor, first: int, last: int, *, writes: bool) -> None:
        """A node, or a transfer from its first to its last, uses a tensor."""
        if tensor.numel():
            line = self.trace.nodes[first].line if writes else None
            self.storage(tensor, line).accesses.append(Access(first, last, writes))

    def arrives(self, tensor: Tensor, end: int) -> None:
        """A tensor's values are there when a transfer has ended."""
        self.arriving.setdefault(self.storage(tensor).number, []).append(end)

    def await_values(self, tensors: list[Tensor]) -> None:
        """Where the processor is about to use values that would be there on a GPU, ordered or not:
        let the ranks that send them go on first."""
        for tensor in tensors:
            storage = self.known.get(tensor.untyped_storage()._cdata)
            ends = self.arriving.pop(storage.number, []) if storage else []
            own = getattr(self._own, "rank", None)
            self.turns.wait(own, lambda ends=ends: self.trace.open.isdisjoint(ends))  # type: ignore[misc]


class _Watch(TorchDispatchMode):
    """Records torch's operations of one thread.

    A backward runs on the stream of its forward, as autograd has it, and autograd orders both with
    what comes before and behind.
    """

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpu = gpu
        self.forward: dict[int, FakeStream] = {}  # by number of an autograd node
        self.latest: FakeStream | None = None  # of a backward that goes on

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        trace, gpu = self.gpu.trace, self.gpu
        given = [(a, v) for a, v in _arguments(func, args, kwargs) if isinstance(v, Tensor)]
        gpu.await_values([tensor for _, tensor in given])
        if func is torch.ops.aten._local_scalar_dense.default:
            stream = self._stream()
            gpu.access(given[0][1], *[trace.add(stream.line, "item")] * 2, writes=False)
            stream.synchronize()
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        storages = {tensor.untyped_storage()._cdata for _, tensor in given}
        fresh = [
            x for x in tree_leaves(result)
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in storages
        ]  # fmt: skip
        written = [tensor for argument, tensor in given if _is_written(argument)]
        stream = self._stream()
        name = func._schema.name.removeprefix("aten::")
        if "empty" in name:
            for tensor in fresh:
                gpu.storage(tensor, stream.line)
        elif fresh or written:
            key = (str(func), *((x.dtype, x.shape, x.stride()) for _, x in given))
            node = trace.kernel(stream.line, key, name)
            for tensor in fresh:
                gpu.storage(tensor, stream.line)
            for argument, tensor in given:
                gpu.access(tensor, node, node, writes=_is_written(argument))
            for tensor in fresh:
                gpu.access(tensor, node, node, writes=True)
        return result

    def _stream(self) -> FakeStream:
        current = self.gpu.current_stream()
        node = torch._C._current_autograd_node()
        if node is None:
            if torch.is_grad_enabled():
                made = torch._C._autograd._get_sequence_nr() - 1
                self.forward.setdefault(made, current)
            self._follow(current)
            self.latest = None
            return current
        found = self.forward.get(node._sequence_nr(), current)
        self._follow(found, current)
        self.latest = found
        return found

    def _follow(self, stream: FakeStream, start: FakeStream | None = None) -> None:
        before = self.latest or start
        if before is not None and before.line != stream.line:
            stream.wait_stream(before)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Each value that an operator is given, with its declaration."""
    declared = func._schema.arguments
    by_name = {argument.name: argument for argument in declared}
    pairs = [*zip(declared, args, strict=False), *((by_name[n], v) for n, v in kwargs.items())]
    return [(argument, leaf) for argument, value in pairs for leaf in tree_leaves(value)]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


class FakeDevice(Cuda):
    """The product's device on a :class:`FakeCuda`; its tensors are the processor's."""

    def __init__(self, gpu: FakeCuda, *, tf32: bool = False) -> None:
        super().__init__(0, tf32=tf32)
        self.gpu = gpu
        self.torch = torch.device("cpu")

        self.rank = gpu.running

    def staging(self, like: Tensor) -> Tensor:
        self.gpu.trace.pins(self.rank, "staging memory")
        return torch.empty_like(like)

    def load(self, tensor: Tensor) -> Tensor:
        return super().load(tensor).clone()


def pin(gpu: FakeCuda, tensor: Tensor) -> Tensor:
    """Stands in for ``Tensor.pin_memory``."""
    gpu.trace.pins(gpu.running, "pin_memory")
    return tensor.clone()
