"""Proof by running: no deadlock, exact bytes, and the same training as one device.

One device computes the whole network with torch's own modules (see
:mod:`orchestrator.execute.reference`), the ranks compute parts of it with the layers' own
functions. Where the two differ, the first step is run again and compared layer by layer
(:mod:`orchestrator.execute.fault`), so that the layer or the exchange that is wrong is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from orchestrator.execute.fault import first_fault
from orchestrator.execute.finite import Diverged
from orchestrator.execute.local import LocalExecutor, disagreements
from orchestrator.execute.reference import Reference
from orchestrator.execute.rounding_band import Band, changes_since, lengths, measured_band
from orchestrator.models.model import Model, Recipe
from orchestrator.models.randomness import seed_of
from orchestrator.program import Program, find_deadlock, grid
from orchestrator.program.ledger import differences

# Relative error allowed after a few steps, by dtype: what differs is the order of additions.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
COARSE = 2.0**-4  # of a layer, to be named as wrong in a format of fewer bits: 16 units of bfloat16
# Units in the last place that the rounding of a gradient's sum may come to. A sum of n terms is off
# by about sqrt(n) of them (Higham and Mary 2019, "A new approach to probabilistic rounding error
# analysis"); short ones by the other sums that lead to them.
OF_A_SUM = 64


@dataclass(frozen=True)
class Verdict:
    """What was found for one plan.

    Args:
        ledger_exact: every message's bytes, and every buffer handed to a collective, are those of
            the program.
        loss_relative_error: largest over the steps.
        parameter_relative_error: largest over the weights, biases and running averages after the
            last step, each measured against the largest change of its tensor; in a format of fewer
            bits than float32 the length of all differences over that of all changes.
        problems: one line each, empty if passed.
    """

    name: str
    deadlock_free: bool
    ledger_exact: bool
    loss_relative_error: float
    parameter_relative_error: float
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Everything held."""
        return not self.problems


class RandomFeed:
    """Noise as images, by (seed, step, sample), so that it does not depend on the plan."""

    def __init__(self, model: Model, global_batch: int, seed: int = 0) -> None:
        self.model, self.seed = model, seed
        self.global_batch = global_batch
        self._step, self._images = -1, torch.empty(0)

    def images(self, step: int, samples: Tensor) -> Tensor:
        if step != self._step:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "images", step))
            shape = (self.global_batch, *self.model.input_shape)
            if self.model.input.integer:
                most = self.model.vocabulary
                self._images = torch.randint(most, shape, generator=generator)
            else:
                self._images = torch.randn(shape, generator=generator)
            self._step = step
        return self._images[samples]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "labels", step))
        shape = (self.global_batch, *self.model.labels.shape)
        return torch.randint(self.model.classes, shape, generator=generator)[samples]


def verify(
    program: Program, recipe: Recipe, *, update_examples: dict[str, int], steps: int = 3
) -> Verdict:
    """Train a few steps as the program says and as one device does, and compare.

    A difference is a fault of a layer's part, an exchange, a reduction, an update or their order.
    Bytes that differ from the ledger's come first, then what is wrong first in the order of
    computation, where one step shows it.

    In a format of fewer bits than float32 what is allowed is measured on one device
    (:mod:`orchestrator.execute.rounding_band`).

    Args:
        program: in the formats to compare in.
        update_examples: the recipe's variable batch size, by layer.
        steps: training steps.
    """
    deadlock = find_deadlock(program)
    if deadlock:
        problem = grid(program, deadlock)
        return Verdict(program.name, False, False, float("nan"), float("nan"), (problem,))
    feed = RandomFeed(program.model, program.global_batch, recipe.seed)
    split = LocalExecutor(program, feed, recipe, strict=True)
    whole = Reference(
        program.model, feed, recipe, global_batch=program.global_batch, dtype=program.precision,
        update_examples=update_examples,
    )  # fmt: skip
    start = {name: w.detach().clone() for name, w in whole.weights.items()}
    losses: list[tuple[float, float]] = []
    coarse = program.dtype not in TOLERANCE
    tolerance = COARSE if coarse else TOLERANCE[program.dtype]
    for step in range(steps):
        try:
            losses.append((split.step(step), whole.step(step)))
        except Diverged as error:
            named = first_fault(program, feed, recipe, update_examples, tolerance)
            causes = (named, str(error)) if named else (str(error),)
            return Verdict(program.name, True, False, float("nan"), float("nan"), causes)
    loss_error = max(_relative(*pair) for pair in losses)
    problems = differences(program, steps, split.sent(), split.handed())
    ledger_exact = not problems
    if coarse:
        ours = changes_since(start, split.parameters())
        expected = changes_since(start, whole.weights)
        band = measured_band(
            program, feed, recipe, update_examples, [loss for _, loss in losses], expected
        )
        wrong = _outside(band, losses, lengths(ours, expected))
        if wrong:
            named = first_fault(program, feed, recipe, update_examples, tolerance)
            problems += [named, *wrong] if named else wrong
        problems += disagreements(program, split.ranks)
        worst = _length(lengths(ours, expected).values()) / max(
            _length(float(change.norm()) for change in expected.values()), 1e-300
        )
        return Verdict(program.name, True, ledger_exact, loss_error, worst, tuple(problems))
    errors = _parameter_errors(
        split.parameters(),
        whole.weights,
        start,
        tolerance,
        _terms(program.model, program.global_batch),
        frozenset(whole.running),
        whole.blown_up(steps),
    )
    worst = max(errors.values())
    if not max(loss_error, worst) <= tolerance:
        named = first_fault(program, feed, recipe, update_examples, tolerance)
        problems += [named] if named else []
    if not loss_error <= tolerance:
        problems.append(f"loss differs by {loss_error:.2e}, allowed {tolerance:.0e}")
    if not worst <= tolerance:
        problems.append(f"{_who_is_wrong(errors, tolerance)}; allowed {tolerance:.0e}")
    problems += disagreements(program, split.ranks)
    return Verdict(program.name, True, ledger_exact, loss_error, worst, tuple(problems))


def _outside(band: Band, losses: list[tuple[float, float]], apart: dict[str, float]) -> list[str]:
    """What is further from one device than rounding explains, a line each."""
    problems = []
    loss = max(abs(ours - theirs) for ours, theirs in losses)
    if not loss <= band.loss:
        problems.append(f"loss differs by {loss:.2e}; rounding explains {band.loss:.0e}")
    wrong = [name for name, length in apart.items() if not length <= band.changes[name]]
    if wrong:
        last = wrong[-1]
        also = f", and {len(wrong) - 1} before it" if len(wrong) > 1 else ""
        problems.append(
            f"{last} differs by {apart[last]:.2e}{also}; rounding explains {band.changes[last]:.0e}"
        )
    return problems


def _length(parts: Iterable[float]) -> float:
    return float(sum(part**2 for part in parts) ** 0.5)


def _relative(ours: float, reference: float) -> float:
    """With one class the loss is 0 whatever the weights."""
    return 0.0 if ours == reference else abs(ours - reference) / max(abs(reference), 1e-300)


def _parameter_errors(
    ours: dict[str, Tensor],
    reference: dict[str, Tensor],
    start: dict[str, Tensor],
    tolerance: float,
    terms: dict[str, int],
    running: frozenset[str],
    blown_up: dict[str, Tensor],
) -> dict[str, float]:
    """By tensor, the largest difference over the largest change.

    A change too small for its weights' format is measured against what rounding may do to it: a
    few units in the last place of the largest weight have to pass, and of the largest change of
    all. A bias before a batch norm has a gradient of zero, and what rounding leaves of that is
    large only beside itself. So has a running mean behind another norm a mean of zero; running
    averages are measured against each other.

    Args:
        terms: by tensor, how many a value of its gradient is the sum of.
        running: the tensors that are not trained.
        blown_up: by tensor, the largest change of all, for an optimizer that makes small gradients
            large.
    """
    found = {}
    most = {True: 0.0, False: 0.0}
    for name, value in reference.items():
        moved = float((value.detach().double() - start[name].double()).abs().max())
        most[name in running] = max(most[name in running], moved)
    for name, value in reference.items():
        wide = value.detach().double()
        change = (wide - start[name].double()).abs().max()
        eps = torch.finfo(value.dtype).eps
        largest = blown_up.get(name, torch.tensor(most[name in running])).double()
        if name in running:  # of what such a parameter before it has shifted
            largest = max([largest, *(shift.double().max() for shift in blown_up.values())])
        rounding = eps * (8 * wide.abs().max() + max(OF_A_SUM, terms[name] ** 0.5) * largest)
        size = torch.maximum(change, rounding / tolerance).clamp_min(1e-300)
        error = float(((ours[name] - wide).abs() / size).max())
        found[name] = error if error == error else float("inf")
    return found


def _terms(model: Model, global_batch: int) -> dict[str, int]:
    """By parameter, how many terms a value of its gradient sums up: examples times positions."""
    return {
        f"{layer.name}.{spec.name}": global_batch
        * prod(layer.output_shape)
        // layer.output.channels
        for layer in model.layers
        for spec in layer.specs
    }


def _who_is_wrong(errors: dict[str, float], tolerance: float) -> str:
    """Name the layer nearest the loss that differs: what is before it differs because of it."""
    wrong = [name for name, error in errors.items() if not error <= tolerance]
    last = wrong[-1]
    also = f", and {len(wrong) - 1} before it" if len(wrong) > 1 else ""
    return f"{last} differs by {errors[last]:.2e} of its change{also}"
