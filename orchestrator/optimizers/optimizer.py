"""What an optimizer is: its options, the tensors that it keeps, and its update.

Everything that asks reads it here: which options a plan may give, what ranks allocate and
checkpoints hold, what the memory walk counts and how often an update reads and writes a weight.

An optimizer says its mathematics twice. :meth:`Optimizer.update` is the quick one, over all tensors
of a rank at once and on state that lies where the rank wants it. :meth:`Optimizer.reference` is the
one device that plans are compared with, and shares no line with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from orchestrator.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Option:
    """What an option may be. Whether it is a number, a switch or several numbers, its default says.

    Args:
        text: what it does, in a sentence.
        low, high: allowed numbers, both ends included.
        above, below: leave out ``low``, or ``high``.
    """

    text: str
    default: Any
    low: float = -inf
    high: float = inf
    above: bool = False
    below: bool = False

    @property
    def allowed(self) -> str:
        """In words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, tuple):
            return f"a list of {len(self.default)} numbers, each {self._range}"
        return f"a number {self._range}"

    @property
    def _range(self) -> str:
        low = f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        if self.high == inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"

    def read(self, value: object) -> Any:
        """The value as the optimizer takes it; None for one that is not allowed."""
        if isinstance(self.default, bool):
            return value if isinstance(value, bool) else None
        if isinstance(self.default, tuple):
            if not isinstance(value, list | tuple) or len(value) != len(self.default):
                return None
            return tuple(map(float, value)) if all(map(self._holds, value)) else None
        return float(value) if self._holds(value) else None  # type: ignore[arg-type]

    def _holds(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            return False
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    @property
    def schema(self) -> dict[str, Any]:
        """In JSON Schema."""
        said: dict[str, Any] = {"description": self.text, "default": self.default}
        if isinstance(self.default, bool):
            return {"type": "boolean", **said}
        number: dict[str, Any] = {"type": "number"}
        number["exclusiveMinimum" if self.above else "minimum"] = self.low
        if self.high < inf:
            number["exclusiveMaximum" if self.below else "maximum"] = self.high
        if isinstance(self.default, tuple):
            count = len(self.default)
            said["default"] = list(self.default)
            return {"type": "array", "items": number, "minItems": count, "maxItems": count, **said}
        return {**number, **said}


def option(default: Any, text: str, **limits: Any) -> Any:
    """A field of an optimizer that a plan may give; see :class:`Option`."""
    return field(default=default, metadata={"option": Option(text, default, **limits)})


@dataclass(frozen=True)
class StateTensor:
    """A tensor that is kept for every parameter from step to step, zero at the start.

    Args:
        name: as checkpoints have it.
        scalar: one number; else of the parameter's shape.
        dtype: of its values; empty for that of the weights that are updated.
    """

    name: str
    scalar: bool = False
    dtype: str = ""


MOMENTUM = StateTensor("momentum")


class Update(Protocol):
    """An optimizer at work on some tensors."""

    def step(self, gradients: Tensors, lr: float, *, first: bool) -> None:
        """Change the tensors in place.

        Args:
            gradients: of each tensor; they stay as they are.
            lr: learning rate.
            first: nothing has been updated yet.
        """


class ReferenceUpdate(Protocol):
    """An optimizer at work on one device, one tensor after another."""

    def step(self, gradients: Mapping[int, Tensor], lr: float) -> None:
        """Change those tensors in place whose gradients, by position, are given."""

    def amplification(self, number: int) -> Tensor | None:
        """By value of a tensor, how much a step would change, over the rate, for a change of 1 of
        its gradient; None where changes are in proportion to gradients."""


@dataclass(frozen=True)
class Optimizer:
    """How weights are changed. The fields are its options.

    Biases, and whatever else :class:`~orchestrator.models.ParameterSpec` says does not decay, get
    no weight decay from any optimizer.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    # its momentum is the change of the weights, the rate in it, and is kept divided by the rate
    rate_inside: ClassVar[bool] = False
    # how far a weight moves depends on all of its parameter
    needs_norms: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, one in self.options().items():
            value = one.read(getattr(self, name))
            if value is None:
                raise InputError(
                    f"optimizer {self.name}: {name} is {getattr(self, name)!r}; "
                    f"allowed: {one.allowed}",
                    remedy=f"leave {name} out, or write it like {name}={one.default}",
                )
            object.__setattr__(self, name, value)

    @classmethod
    def options(cls) -> dict[str, Option]:
        """By name, what a plan may give."""
        return {f.name: f.metadata["option"] for f in fields(cls) if f.default is not MISSING}

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """What is kept for every parameter."""
        raise NotImplementedError

    @property
    def reads_again(self) -> int:
        """How often an update reads a weight and its gradient once more, to look at them first."""
        return 0

    def update(
        self, targets: Tensors, state: Mapping[str, Tensors], decays: Sequence[bool], lr: float
    ) -> Update:
        """The update of some tensors.

        Args:
            targets: weights, or parts of them.
            state: by name, a tensor for each target; it is read and written where it lies.
            decays: by target, whether weight decay applies.
            lr: learning rate at the start.
        """
        raise NotImplementedError

    def reference(self, weights: Tensors, decays: Sequence[bool]) -> ReferenceUpdate:
        """The same mathematics by another way: torch's own optimizer, or the formula as written."""
        raise NotImplementedError


def decay_groups(
    targets: Tensors, decays: Sequence[bool], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups as torch's optimizers take them: what decays, and what does not."""
    return [
        {
            "params": [t for t, d in zip(targets, decays, strict=True) if d == decay],
            "weight_decay": weight_decay if decay else 0.0,
        }
        for decay in (True, False)
        if decay in decays
    ]


class TorchUpdate:
    """One of torch's optimizers, whose state lies in tensors of ours."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        targets: Tensors,
        state: Mapping[str, Tensors],
        names: Mapping[str, str],
    ) -> None:
        """Args:
        names: what torch calls each state tensor, by our name.
        """
        self.optimizer, self.targets = optimizer, targets
        for name, tensors in state.items():
            for target, tensor in zip(targets, tensors, strict=True):
                optimizer.state[target][names[name]] = tensor

    def step(self, gradients: Tensors, lr: float, *, first: bool) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._step(gradients)

    def _step(self, gradients: Tensors) -> None:
        for target, gradient in zip(self.targets, gradients, strict=True):
            target.grad = gradient
        self.optimizer.step()
        for target in self.targets:
            target.grad = None


class TorchReference:
    """One of torch's optimizers with a state of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Tensors) -> None:
        self.optimizer, self.weights = optimizer, weights

    def step(self, gradients: Mapping[int, Tensor], lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for number, gradient in gradients.items():
            self.weights[number].grad = gradient
        self.optimizer.step()
        for number in gradients:
            self.weights[number].grad = None

    def amplification(self, number: int) -> Tensor | None:
        return None
