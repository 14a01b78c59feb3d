"""LARS, layer-wise adaptive rate scaling: You, Gitman, Ginsburg 2017, "Large batch training of
convolutional networks", algorithm 1 and equation 6.

    rate <- trust |w| / (|g| + weight_decay |w|)         norms of the whole parameter
    v <- momentum v + lr rate (g + weight_decay w)
    w <- w - v

The variant: the paper's, with the rate inside the velocity, and norms of each parameter by itself.
What does not decay, biases and the scales and shifts of norms, has rate 1, as is usual: their norms
are small and say little. So has a parameter whose norm, or whose gradient's, is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.optimizers.optimizer import MOMENTUM, Optimizer, StateTensor, option

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.optimizers.optimizer import Tensors


@dataclass(frozen=True)
class Lars(Optimizer):
    """Momentum with a rate of its own for every parameter."""

    name = "lars"
    summary = "layer-wise adaptive rates for large batches (You, Gitman, Ginsburg 2017)"
    needs_norms = True

    momentum: float = option(0.9, "Momentum of the update.", low=0, high=1, below=True)
    weight_decay: float = option(0.0005, "Weight decay.", low=0)
    trust: float = option(
        0.001, "How far a parameter may move in a step: times its norm, and the rate.",
        low=0, above=True,
    )  # fmt: skip

    @property
    def state(self) -> tuple[StateTensor, ...]:
        return (MOMENTUM,)

    @property
    def reads_again(self) -> int:
        return 1

    def update(
        self, targets: Tensors, state: Mapping[str, Tensors], decays: Sequence[bool], lr: float
    ) -> LarsUpdate:
        return LarsUpdate(self, targets, state["momentum"], decays)

    def reference(self, weights: Tensors, decays: Sequence[bool]) -> _AsWritten:
        return _AsWritten(self, weights, decays)


class LarsUpdate:
    """All tensors at once."""

    def __init__(
        self, options: Lars, targets: Tensors, velocities: Tensors, decays: Sequence[bool]
    ) -> None:
        self._numbers = (options.momentum, options.weight_decay, options.trust)
        self.targets, self.velocities = list(targets), list(velocities)
        self.adapted = [n for n, decay in enumerate(decays) if decay]

    def step(self, gradients: Tensors, lr: float, *, first: bool) -> None:
        import torch

        momentum, decay, trust = self._numbers
        velocities = self.velocities
        with torch.no_grad():
            torch._foreach_mul_(velocities, momentum)
            adapted = set(self.adapted)
            plain = [n for n in range(len(velocities)) if n not in adapted]
            if plain:
                changed = [velocities[n] for n in plain]
                torch._foreach_add_(changed, [gradients[n] for n in plain], alpha=lr)
            if adapted:
                changed = [velocities[n] for n in self.adapted]
                weights = [self.targets[n] for n in self.adapted]
                slopes = [gradients[n] for n in self.adapted]
                w = torch.stack(torch._foreach_norm(weights))
                g = torch.stack(torch._foreach_norm(slopes))
                rates = trust * w / (g + decay * w)
                rates = lr * torch.where((w > 0) & (g > 0), rates, 1.0)
                torch._foreach_addcmul_(changed, slopes, list(rates.unbind()))
                decayed = list((decay * rates).unbind())
                torch._foreach_addcmul_(changed, weights, decayed)
            torch._foreach_sub_(self.targets, velocities)


class _AsWritten:
    def __init__(self, options: Lars, weights: Tensors, decays: Sequence[bool]) -> None:
        self.options, self.weights, self.decays = options, weights, decays
        self.velocities = [w.detach() * 0 for w in weights]

    def step(self, gradients: Mapping[int, Tensor], lr: float) -> None:
        decay, momentum = self.options.weight_decay, self.options.momentum
        for number, gradient in gradients.items():
            weight, rate, change = self.weights[number].detach(), 1.0, gradient
            if self.decays[number]:
                size = float((weight * weight).sum().sqrt())
                slope = float((gradient * gradient).sum().sqrt())
                change = gradient + decay * weight
                if size and slope:
                    rate = self.options.trust * size / (slope + decay * size)
            velocity = momentum * self.velocities[number] + lr * rate * change
            self.velocities[number] = velocity
            weight.sub_(velocity)

    def amplification(self, number: int) -> None:
        return None
