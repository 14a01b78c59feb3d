"""The factor on the loss that keeps small gradients in float16's range (2^-24 to 65,504).

A given factor stays as it is. A dynamic one is halved, and the update left out, when a gradient is
not finite, and doubled after 2,000 updates in a row: Micikevicius et al. 2018, "Mixed precision
training", section 3.2, with the numbers of ``torch.amp.GradScaler``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 65536.0
PATIENCE = 2000


@dataclass
class LossScale:
    """The factor, and how long it has held.

    Args:
        value: the loss is multiplied by it, and gradients are divided.
        dynamic: whether it follows what the gradients do.
        held: updates since it was changed.
    """

    value: float
    dynamic: bool = False
    held: int = 0

    @classmethod
    def of(cls, recipe: float | str) -> LossScale:
        """Of a recipe's ``loss_scale``."""
        return cls(FIRST, True) if isinstance(recipe, str) else cls(recipe)

    def passes(self, gradients: Iterable[Tensor]) -> bool:
        """Whether an update may be made with these gradients."""
        return not self.dynamic or all(bool(torch.isfinite(g).all()) for g in gradients)

    def note(self, *, updated: bool) -> None:
        """Follow a step that has ended."""
        if not self.dynamic:
            return
        self.held = self.held + 1 if updated else 0
        if not updated:
            self.value /= 2
        elif self.held == PATIENCE:
            self.value, self.held = 2 * self.value, 0
