"""Threads that play the ranks' hosts: one runs at a time, until it waits; in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition


class Turns:
    """Whose turn it is.

    Args:
        count: threads that take part, numbered from 0. Others may wait beside them.
    """

    def __init__(self, count: int) -> None:
        self.condition = Condition()
        self.alive = set(range(count))
        self.now = 0
        self.vain = 0  # turns in a row in which nobody could go on

    @contextmanager
    def taking_part(self, number: int) -> Iterator[None]:
        """A thread's life."""
        with self.condition:
            self.condition.wait_for(lambda: self.now == number)
        try:
            yield
        finally:
            with self.condition:
                self.alive.discard(number)
                self._pass_on()

    def wait(self, number: int | None, ready: Callable[[], bool]) -> None:
        """Let others go on until ``ready``.

        Args:
            number: who waits; None for a thread that takes no part.

        Raises:
            RuntimeError: everybody waits.
        """
        with self.condition:
            if number is None:
                self.condition.wait_for(ready)
                return
            while not ready():
                self.vain += 1
                if self.vain > 2 * len(self.alive):
                    raise RuntimeError(f"deadlock: every rank waits, rank {number} among them")
                self._pass_on()
                self.condition.wait_for(lambda: self.now == number)
            self.vain = 0
            self.condition.notify_all()

    def _pass_on(self) -> None:
        later = [n for n in self.alive if n > self.now]
        self.now = min(later or self.alive, default=-1)
        self.condition.notify_all()
