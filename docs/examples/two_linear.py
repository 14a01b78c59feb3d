"""Two linear layers, 6 -> 8 -> 4: the network of README's program."""

from __future__ import annotations

from orchestrator.models import Linear, Model


def two_linear() -> Model:
    """48 + 8 and 32 + 4 parameters."""
    return Model("two-linear", (6,), [Linear(name="a", features=8), Linear(name="b", features=4)])
