"""Stochastic gradient descent as ``torch.optim.SGD`` has it: the rate outside the momentum.

g <- g + weight_decay w                        biases: no decay
b <- momentum b + (1 - dampening) g            the first time: b <- g
w <- w - lr b                                  nesterov: w <- w - lr (g + momentum b)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from orchestrator.optimizers.optimizer import (
    MOMENTUM,
    Optimizer,
    StateTensor,
    TorchReference,
    TorchUpdate,
    decay_groups,
    option,
)

if TYPE_CHECKING:
    import torch

    from orchestrator.optimizers.optimizer import Tensors


@dataclass(frozen=True)
class Sgd(Optimizer):
    """torch's stochastic gradient descent."""

    name = "sgd"
    summary = "as torch.optim.SGD: momentum without the rate in it, nesterov, dampening"

    momentum: float = option(0.9, "Momentum of the update.", low=0, high=1, below=True)
    weight_decay: float = option(0.0005, "Weight decay, added to the gradient.", low=0)
    dampening: float = option(0.0, "Share of a gradient that momentum leaves out.", low=0, high=1)
    nesterov: bool = option(False, "Whether to look ahead by a step of the momentum.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (not self.momentum or self.dampening):
            raise InputError(
                f"optimizer sgd: nesterov with momentum {self.momentum:g} and dampening "
                f"{self.dampening:g}; allowed: with a momentum above 0 and no dampening",
                remedy="momentum: 0.9 and dampening: 0, or nesterov: false",
            )

    @property
    def state(self) -> tuple[StateTensor, ...]:
        return (MOMENTUM,) if self.momentum else ()

    def update(
        self, targets: Tensors, state: Mapping[str, Tensors], decays: Sequence[bool], lr: float
    ) -> TorchUpdate:
        groups = decay_groups(targets, decays, self.weight_decay)
        optimizer = self._torch(groups, lr, fused=True)
        return _Dampened(optimizer, targets, state, {"momentum": "momentum_buffer"})

    def reference(self, weights: Tensors, decays: Sequence[bool]) -> TorchReference:
        groups = decay_groups(weights, decays, self.weight_decay)
        return TorchReference(self._torch(groups, 0.0, foreach=False), weights)

    def _torch(
        self, groups: list[dict[str, object]], lr: float, **how: bool
    ) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(
            groups, lr=lr, momentum=self.momentum, dampening=self.dampening, nesterov=self.nesterov,
            **how,
        )  # fmt: skip


class _Dampened(TorchUpdate):
    """The first gradient is taken whole: its momentum is zero, where torch has none."""

    def step(self, gradients: Tensors, lr: float, *, first: bool) -> None:
        groups = self.optimizer.param_groups
        usual = groups[0]["dampening"]
        for group in groups:
            group["dampening"] = 0.0 if first else usual
        super().step(gradients, lr, first=first)
        for group in groups:
            group["dampening"] = usual
