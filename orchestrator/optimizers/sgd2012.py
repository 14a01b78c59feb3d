"""The update of Krizhevsky, Sutskever and Hinton 2012, section 5: the rate inside the velocity.

    v <- momentum v - weight_decay lr w - lr g        biases: no decay
    w <- w + v

While the rate stays as it is, that is what ``torch.optim.SGD`` does with v = -lr b, in one pass
over memory since it is fused there; so b is what is kept, and a new rate has to rescale it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.optimizers.optimizer import (
    MOMENTUM,
    Optimizer,
    ReferenceUpdate,
    StateTensor,
    TorchUpdate,
    decay_groups,
    option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.optimizers.optimizer import Tensors


@dataclass(frozen=True)
class Sgd2012(Optimizer):
    """The 2012 paper's: momentum with the rate inside."""

    name = "sgd2012"
    summary = "v <- momentum v - weight_decay lr w - lr g; w <- w + v (Krizhevsky et al. 2012)"
    rate_inside = True

    momentum: float = option(0.9, "Momentum of the update.", low=0, high=1, below=True)
    weight_decay: float = option(0.0005, "Weight decay.", low=0)

    @property
    def state(self) -> tuple[StateTensor, ...]:
        return (MOMENTUM,)

    def update(
        self, targets: Tensors, state: Mapping[str, Tensors], decays: Sequence[bool], lr: float
    ) -> TorchUpdate:
        import torch

        groups = decay_groups(targets, decays, self.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=self.momentum, fused=True)
        return _Rescaled(optimizer, targets, state, {"momentum": "momentum_buffer"})

    def reference(self, weights: Tensors, decays: Sequence[bool]) -> ReferenceUpdate:
        return _AsWritten(self, weights, decays)


class _Rescaled(TorchUpdate):
    """Another rate rescales b, so that v = -lr b stays what it is."""

    def step(self, gradients: Tensors, lr: float, *, first: bool) -> None:
        groups = self.optimizer.param_groups
        old = groups[0]["lr"]
        if lr in (old, 0.0):
            # of a rate that has fallen to nothing, only the velocity is left
            self._coast() if lr != old else self._step(gradients)
            return
        for group in groups:
            for target in group["params"]:
                self.optimizer.state[target]["momentum_buffer"].mul_(old / lr)
            group["lr"] = lr
        self._step(gradients)

    def _coast(self) -> None:
        """v <- momentum v; w <- w + v."""
        import torch

        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.0
        self._step([torch.zeros_like(target) for target in self.targets])
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay


class _AsWritten:
    def __init__(self, options: Sgd2012, weights: Tensors, decays: Sequence[bool]) -> None:
        self.options, self.weights, self.decays = options, weights, decays
        self.velocities = [w.detach() * 0 for w in weights]

    def step(self, gradients: Mapping[int, Tensor], lr: float) -> None:
        for number, gradient in gradients.items():
            weight, velocity = self.weights[number].detach(), self.velocities[number]
            velocity.mul_(self.options.momentum).add_(gradient, alpha=-lr)
            if self.decays[number]:
                velocity.add_(weight, alpha=-self.options.weight_decay * lr)
            weight.add_(velocity)

    def amplification(self, number: int) -> None:
        return None
