"""How far two right runs may be apart in a format of few bits: measured, on one device.

In float64 and float32 what differs between a plan and one device is the order of additions, and a
fixed tolerance holds. In bfloat16 every activation is rounded to 8 significant bits, the roundings
of two right runs have little in common, and how far they drive the runs apart depends on the
network: a ReLU whose input is almost nothing opens in one run and not in the other. So one device
is run again, each time with every start weight changed by up to a unit in its last place, and once
in float32. As far as these runs are from the first, times :data:`SAFETY`, a plan may be from it.
(Stochastic arithmetic: Vignes 1993, "A stochastic arithmetic for reliable scientific computation".)

What this cannot see is an error smaller than the rounding. That a plan is right is shown in
float64; here, that masters, sums and messages have the formats they should.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.execute.interpreter import Feed
from orchestrator.execute.reference import Reference
from orchestrator.models.model import Recipe
from orchestrator.program import Program
from orchestrator.program.precision import Precision

AGAIN = 4  # runs with changed start weights
# Over splits, optimizers and seeds of a small network the furthest that a right plan was from one
# device was 2.4 times the furthest of the runs again (a running average; of what is trained 1.4
# times); of the losses 1.6 times.
SAFETY = 6

Changes = Mapping[str, Tensor]


@dataclass(frozen=True)
class Band:
    """What is allowed between two runs.

    Args:
        loss: absolute, of any step.
        changes: by parameter, the length of the difference of its changes.
    """

    loss: float
    changes: dict[str, float]


def measured_band(
    program: Program,
    feed: Feed,
    recipe: Recipe,
    update_examples: dict[str, int],
    losses: Sequence[float],
    changes: Changes,
) -> Band:
    """The band around what one device has found.

    Args:
        losses: its loss of every step.
        changes: of its parameters, after the last one.
    """
    widest, apart = 0.0, dict.fromkeys(changes, 0.0)
    for number in range(AGAIN + 1):
        exact = number == AGAIN
        again = Reference(
            program.model, feed, recipe, global_batch=program.global_batch,
            dtype=Precision.of("float32") if exact else program.precision,
            update_examples=update_examples,
        )  # fmt: skip
        if not exact:
            _change(again, number)
        start = {name: w.detach().clone() for name, w in again.weights.items()}
        for step, loss in enumerate(losses):
            widest = max(widest, abs(again.step(step) - loss))
        for name, length in lengths(changes_since(start, again.weights), changes).items():
            apart[name] = max(apart[name], length)
    return Band(SAFETY * widest, {name: SAFETY * length for name, length in apart.items()})


def _change(reference: Reference, seed: int) -> None:
    """Every weight by up to a unit in the last place of the format that it is computed in."""
    unit = torch.finfo(reference.dtype).eps
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in reference.weights.values():
            weight.mul_(1 + unit * (2 * torch.rand(weight.shape, generator=generator) - 1))


def changes_since(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, in float64."""
    return {name: now[name].detach().double() - w.double() for name, w in start.items()}


def lengths(a: Changes, b: Changes) -> dict[str, float]:
    """By parameter, the Euclidean length of the difference."""
    return {name: float((a[name] - b[name]).norm()) for name in b}
