"""A step without the others leaves everything as it was, whatever its values are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.transport import Handle, Pieces
from orchestrator.execute.verify import RandomFeed
from orchestrator.execute.warm_up import _Alone, _Nothing, warm_up
from orchestrator.models import Linear, Model
from orchestrator.program import Program
from orchestrator.program.boundary import Route
from tests.execute.fake_run import RECIPE
from tests.execute.test_local import PROGRAMS, program_of
from tests.program.small import small_program


class Unreachable:
    """A transport that must not be used."""

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        raise AssertionError(route)

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        raise AssertionError(group)


def warmed(program: Program) -> LocalExecutor:
    """An executor that has trained two steps, and all of whose ranks have then warmed up alone."""
    executor = LocalExecutor(program, RandomFeed(program.model, program.global_batch), RECIPE)
    for step in range(2):
        executor.step(step)
    for rank in executor.ranks:
        kept, rank.transport.transport = rank.transport.transport, Unreachable()
        warm_up(rank, 2)
        rank.transport.transport = kept
    return executor


@pytest.mark.parametrize("name", PROGRAMS)
def test_training_goes_on_as_if_it_had_not_been(name: str) -> None:
    """In bits, in what is counted and in when a step begins."""
    program = program_of(name)
    executor = LocalExecutor(program, RandomFeed(program.model, program.global_batch), RECIPE)
    expected = [executor.step(step) for step in range(4)]
    other = warmed(program)
    assert [other.step(2), other.step(3)] == expected[2:]
    weights, others = executor.parameters(), other.parameters()
    assert all(torch.equal(weights[n], others[n]) for n in weights)
    assert (executor.sent(), executor.handed()) == (other.sent(), other.handed())


def test_a_loss_that_is_not_a_number_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may make one of zeros, and nobody will see it."""

    def exchange(self: _Alone, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        for _, tensor in receives:
            tensor.fill_(torch.nan)
        return _Nothing()

    monkeypatch.setattr(_Alone, "exchange", exchange)
    executor = warmed(program_of("pipeline"))
    assert all(torch.isfinite(w).all() for w in executor.parameters().values())
    assert executor.step(2) > 0


def test_a_kind_that_draws_as_torch_does_draws_the_same_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model("noisy", (6,), [Linear(name="a", features=4)])
    compute = Linear.compute

    def noisy(self: Linear, *args: Any) -> Tensor:
        return compute(self, *args) + torch.rand(1)

    monkeypatch.setattr(Linear, "compute", noisy)
    program = small_program(model, "layers: all, ranks: [0], split: none", batch=4)
    executor = LocalExecutor(program, RandomFeed(model, 4), RECIPE)
    executor.step(0)
    before = torch.get_rng_state()
    warm_up(executor.ranks[0], 1)
    assert torch.equal(torch.get_rng_state(), before)
