"""How fast this machine is right now: a fixed piece of work on every core at once.

A shared machine's speed changes by half from minute to minute. The work is a small part of AlexNet,
forward and backward, in processes that are started once and otherwise wait.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from statistics import median
from types import TracebackType

SECONDS = 3.0


class Probe:
    """Waiting processes, one for each core; a context manager that ends them."""

    def __enter__(self) -> Probe:
        spawn = multiprocessing.get_context("spawn")
        self._ends = []
        self._processes = []
        for _ in range(len(os.sched_getaffinity(0))):
            mine, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self._ends.append(mine)
            self._processes.append(process)
        self.seconds()  # what is done once, is done now
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()

    def seconds(self) -> float:
        """What the work takes now, median over repeats and cores."""
        for end in self._ends:
            end.send(SECONDS)
        return float(median(end.recv() for end in self._ends))


def _work(end: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    x = torch.randn(8, 48, 27, 27, requires_grad=True)
    w = torch.randn(128, 48, 5, 5, requires_grad=True)
    while (seconds := end.recv()) is not None:
        times: list[float] = []
        while sum(times) < seconds:
            begun = time.perf_counter()
            y = functional.max_pool2d(functional.relu(functional.conv2d(x, w, padding=2)), 3, 2)
            torch.autograd.grad(y.sum(), [x, w])
            times.append(time.perf_counter() - begun)
        end.send(median(times))
