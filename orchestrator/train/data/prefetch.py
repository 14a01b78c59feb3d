"""Loads the next step's batch on a thread while this step computes.

caller  [next 0]  compute 0  [next 1]  compute 1  [next 2]
thread   load 0   load 1               load 2
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

_CLOSE_WAIT_S = 0.8


class Prefetcher(Generic[T]):
    """``load(start)``, ``load(start + 1)``, ..., each begun before it is asked for.

    Args:
        load: gives one step's batch; called on one background thread, one step at a time.
        start: the first step.
        stop: the step to end before; None goes on until closed.
        depth: batches loaded ahead of the one the caller has; that many are held in memory.
    """

    def __init__(
        self, load: Callable[[int], T], start: int = 0, stop: int | None = None, depth: int = 1
    ) -> None:
        if depth < 1:
            raise ValueError(f"{depth=} must be 1 or more")
        self._load = load
        self._stop = stop
        self._step = start
        self._free = Semaphore(depth)
        self._ready: SimpleQueue[T | _Failure] = SimpleQueue()
        self._failure: _Failure | None = None
        self._closed = Event()
        # A daemon: a load that hangs must not keep the process from ending.
        self._thread = Thread(target=self._run, args=(start,), name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> T:
        """The next step's batch, in order; waits until it is loaded.

        Raises:
            Whatever ``load`` raised for this step, and the same again when asked again.
            RuntimeError: closed, or past ``stop``.
        """
        if self._closed.is_set():
            raise RuntimeError("the prefetcher is closed")
        if self._failure is None:
            if self._step == self._stop:
                raise RuntimeError(f"there is no step {self._step}: the data ends before it")
            got = self._ready.get()
            if not isinstance(got, _Failure):
                self._step += 1
                self._free.release()
                return got
            self._failure = got
        raise self._failure.error

    def close(self) -> None:
        """Stop within a second. A load in progress ends by itself; what it gives is dropped."""
        if not self._closed.is_set():
            self._closed.set()
            self._free.release()
            self._ready.put(_Failure(RuntimeError("the prefetcher is closed")))
        self._thread.join(_CLOSE_WAIT_S)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, step: int) -> None:
        while step != self._stop:
            self._free.acquire()
            if self._closed.is_set():
                return
            try:
                batch = self._load(step)
            except BaseException as error:  # all of them: the caller waits for an answer
                self._ready.put(_Failure(error))
                return
            self._ready.put(batch)
            step += 1


class _Failure:
    """What ``load`` raised, on its way to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
