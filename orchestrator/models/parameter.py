"""Trained tensors of a layer: shapes, initial values, and the parts that ranks hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from orchestrator.models.box import Box, Shape
from orchestrator.models.fields import Bounds, check_fields

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Initial:
    """Initial values of a parameter; the kinds below, or one of a user's own."""

    def __post_init__(self) -> None:
        check_fields(self, f"initial values, {type(self).__name__}")

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values of this shape, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it draws")


@dataclass(frozen=True)
class Normal(Initial):
    """Initial values drawn from N(0, std)."""

    std: Annotated[float, Bounds(0)]

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.empty(shape).normal_(0, self.std, generator=generator)


@dataclass(frozen=True)
class Uniform(Initial):
    """Initial values drawn evenly from -bound to bound."""

    bound: Annotated[float, Bounds(0)]

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.empty(shape).uniform_(-self.bound, self.bound, generator=generator)


@dataclass(frozen=True)
class Constant(Initial):
    """Initial values that are all the same."""

    value: float

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.full(shape, float(self.value))


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor of a layer that is trained.

    Args:
        name: within the layer, such as ``weight``.
        shape: as torch keeps it.
        initial: its initial values.
        axes: by dimension, the axis of the output whose box cuts it; None for one that is never
            cut. Kinds that cut in another way override :meth:`Layer.tiles`.
        decays: whether weight decay applies.
        tied_to: ``layer.parameter`` whose tensor this is; it has no values of its own.
    """

    name: str
    shape: Shape
    initial: Initial
    axes: tuple[str | None, ...] = ()
    decays: bool = True
    tied_to: str = ""


class Tile(NamedTuple):
    """A rank's part of one parameter: a box of it, kept as a tensor of its own."""

    parameter: str
    box: Box
