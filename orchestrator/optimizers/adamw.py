"""AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization"), as torch has it.

w <- w - lr weight_decay w                                     biases: no decay
m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.optimizers.optimizer import (
    Optimizer,
    StateTensor,
    TorchReference,
    TorchUpdate,
    decay_groups,
    option,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from orchestrator.optimizers.optimizer import Tensors


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    name = "adamw"
    summary = "as torch.optim.AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)"

    betas: tuple[float, float] = option(
        (0.9, 0.999), "Decay of the means of gradients and of their squares.",
        low=0, high=1, below=True,
    )  # fmt: skip
    eps: float = option(1e-8, "Added to the root of the squares' mean.", low=0)
    weight_decay: float = option(0.01, "Weight decay, times the rate, of the weight.", low=0)

    @property
    def state(self) -> tuple[StateTensor, ...]:
        steps = StateTensor("step", scalar=True, dtype="float32")
        return (StateTensor("exp_avg"), StateTensor("exp_avg_sq"), steps)

    def update(
        self, targets: Tensors, state: Mapping[str, Tensors], decays: Sequence[bool], lr: float
    ) -> TorchUpdate:
        groups = decay_groups(targets, decays, self.weight_decay)
        optimizer = self._torch(groups, lr, fused=True)
        return TorchUpdate(optimizer, targets, state, {name: name for name in state})

    def reference(self, weights: Tensors, decays: Sequence[bool]) -> _Reference:
        groups = decay_groups(weights, decays, self.weight_decay)
        return _Reference(self._torch(groups, 0.0, foreach=False), weights)

    def _torch(
        self, groups: list[dict[str, object]], lr: float, **how: bool
    ) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, **how)


class _Reference(TorchReference):
    """A gradient that is nothing but rounding is blown up to a step of the rate's size."""

    def amplification(self, number: int) -> Tensor:
        (group,) = [
            group
            for group in self.optimizer.param_groups
            if any(weight is self.weights[number] for weight in group["params"])
        ]
        state = self.optimizer.state[self.weights[number]]
        mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        root: Tensor = mean.sqrt()
        amplified: Tensor = 1 / (root + group["eps"])
        return amplified
