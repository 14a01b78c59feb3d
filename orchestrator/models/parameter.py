"""Tensors that a layer keeps from step to step: shapes, initial values, how they are updated, and
the parts that ranks hold."""

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
class RunningAverage:
    """The update of a tensor that is not trained, and follows what its layer finds in each batch::

        value <- (1 - momentum) value + momentum found

    What is found takes the way of a gradient: a layer's :meth:`Layer.compute` gives its part's
    share of it with :func:`orchestrator.models.running_torch.tell`, shares are added up over
    microbatches, ranks and replicas in the same buffers and by the same ops as gradients are, and
    the step that updates the weights updates this, too. So the ledger's gradient bytes hold it.
    A share is no derivative: neither the scale of a loss nor the clipping of gradients is for it.

    Args:
        momentum: weight of the newest batch (torch's convention; an optimizer's is that of the
            past).
    """

    momentum: Annotated[float, Bounds(0, 1, above=True)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "running average")

    def apply(self, value: Tensor, found: Tensor) -> None:
        """Update a value, or a part of it, in place."""
        value.detach().mul_(1 - self.momentum).add_(found, alpha=self.momentum)


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor that a layer keeps: trained, unless it has an update of its own.

    Args:
        name: within the layer, such as ``weight``.
        shape: as torch keeps it.
        initial: its initial values.
        axes: by dimension, the axis of the output whose box cuts it; None for one that is never
            cut. Kinds that cut in another way override :meth:`Layer.tiles`.
        decays: whether weight decay applies.
        tied_to: ``layer.parameter`` whose tensor this is; it has no values of its own.
        update: how it is updated; None for one that is trained, by the recipe's optimizer. Only
            those are counted as a network's parameters.
    """

    name: str
    shape: Shape
    initial: Initial
    axes: tuple[str | None, ...] = ()
    decays: bool = True
    tied_to: str = ""
    update: RunningAverage | None = None


class Tile(NamedTuple):
    """A rank's part of one parameter: a box of it, kept as a tensor of its own."""

    parameter: str
    box: Box
