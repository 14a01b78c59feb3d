"""How all ranks of a run learn that training has diverged, and which layer did it first.

    the rank that saw it      "diverged" ─►┐          ┌─► Examine ─► every other rank
                                           └─ driver ─┘
    every rank                "examined" ─►  the first layer of all: the run stops with its name

The ranks wait for each other meanwhile, and the driver ends them. Where there is no driver, the
rank that saw it raises, its peers lose it, and each names what it finds of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.execute.finite import (
    Diverged,
    Divergence,
    NonFinite,
    bad_parameters,
    earliest,
    first_non_finite,
)
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.worker_context import WorkerContext

DIVERGED, EXAMINED = "diverged", "examined"


@dataclass(frozen=True)
class Examine:
    """The driver asks a rank for its first layer with a value that is not finite."""


def answer(context: WorkerContext, interpreter: RankInterpreter) -> None:
    """Answer the driver, should it ever ask; a thread does, since the rank itself waits then."""

    def examine(_: Examine) -> None:
        context.emit(EXAMINED, first_non_finite(interpreter))

    context.listen(Examine, examine)


def stop_at_loss(context: WorkerContext, interpreter: RankInterpreter, step: int) -> None:
    """Stop the run in a step whose loss on this rank is not finite."""
    _stop(context, Divergence(context.rank, step, True, first_non_finite(interpreter)))


def explain(context: WorkerContext, interpreter: RankInterpreter, error: RuntimeError) -> None:
    """Where no driver asks: a peer was lost, perhaps because of a value that this rank made.

    Raises:
        RuntimeError: so it is; with the layer.
    """
    found = None if context.driven else first_non_finite(interpreter)
    if found is not None:
        raise RuntimeError(f"{error}; and {found}") from error


def check_saved(context: WorkerContext, interpreter: RankInterpreter, ended: int) -> None:
    """Stop the run where parameters are not finite that are about to be saved."""
    found = bad_parameters(interpreter)
    if found is not None:
        _stop(context, Divergence(context.rank, ended, False, found))


def _stop(context: WorkerContext, divergence: Divergence) -> None:
    context.emit(DIVERGED, divergence)
    if context.driven:
        time.sleep(context.timeout_s)  # the driver asks the others, and ends this process, too
    raise Diverged(divergence)


@dataclass
class Inquiry:
    """What the driver knows of a divergence.

    Args:
        ask: hands a rank a question.
    """

    world_size: int
    ask: Callable[[int, Examine], None]
    seen: Divergence | None = None
    answers: dict[int, NonFinite | None] = field(default_factory=dict)

    def add(self, divergence: Divergence) -> None:
        """A rank has seen it; the first to do so counts."""
        self.answers[divergence.rank] = divergence.found
        if self.seen is None:
            self.seen = divergence
            for rank in range(self.world_size):
                if rank != divergence.rank:
                    self.ask(rank, Examine())

    def examined(self, rank: int, found: NonFinite | None) -> None:
        """A rank has answered, or has ended without anything to say."""
        self.answers[rank] = earliest((self.answers.get(rank), found))

    def verdict(self, steps_in: Callable[[int], bool]) -> Divergence | None:
        """What to stop with, once every rank has answered and told of the steps before.

        Args:
            steps_in: whether all ranks have reported so many steps.
        """
        if self.seen is None or len(self.answers) < self.world_size:
            return None
        if not steps_in(self.seen.ended):
            return None
        return self.seen._replace(found=earliest(self.answers.values()))
