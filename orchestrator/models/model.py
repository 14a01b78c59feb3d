"""A model: a chain of named layers, sized for one input, ending in its loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from orchestrator.errors import InputError
from orchestrator.models.fields import Bounds, Matches, check, check_fields
from orchestrator.models.layers import (
    Count,
    CrossEntropy,
    Layer,
    Shape,
    SizedLayer,
    Sum,
    Zeros,
    check_reads,
)

ModelName = Annotated[str, Matches(r"[\w][\w .+-]{0,99}", "of letters, digits and . _ - +")]
Kind = Annotated[str, Matches(r"[A-Za-z]\w{0,99}", "of letters, digits and _")]


@dataclass(frozen=True)
class Recipe:
    """How the model's authors trained it; a plan's ``training`` overrides single values.

    The update is the 2012 paper's, with the rate inside the velocity:
    v <- momentum v - weight_decay lr w - lr g;  w <- w + v. Biases are not decayed.
    """

    lr: Annotated[float, Bounds(0)] = 0.01
    momentum: Annotated[float, Bounds(0, 1, below=True)] = 0.9
    weight_decay: Annotated[float, Bounds(0)] = 0.0005
    seed: Annotated[int, Bounds(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self, "recipe")


@dataclass(frozen=True)
class Model:
    """Layers in order with their shapes. ``layers`` ends with the loss, named ``loss``.

    Args:
        name: what the model is called.
        input_shape: of one example: (channels, height, width), or fewer or more sides.
        chain: the layers from image to class scores, names unique.

    Raises:
        InputError: a name twice, ``loss`` as a name, what is no layer or does not say what it
            computes, or shapes that do not fit.
    """

    name: str
    input_shape: Shape
    chain: tuple[Layer, ...]
    recipe: Recipe = Recipe()

    def __init__(
        self, name: str, input_shape: Shape, chain: Iterable[Layer], recipe: Recipe | None = None
    ) -> None:
        check(name, ModelName, "model: name")
        what = f"model {name}"
        shape = _as_tuple(input_shape, f"{what}: input_shape")
        check(shape, tuple[Count, ...], f"{what}: input_shape")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "input_shape", shape)
        object.__setattr__(self, "chain", _as_tuple(chain, f"{what}: layers"))
        object.__setattr__(self, "recipe", recipe or Recipe())
        if not shape:
            raise InputError(f"{what}: input_shape is empty; allowed: such as (3, 32, 32)")
        if not isinstance(self.recipe, Recipe):
            raise InputError(f"{what}: recipe is a {type(recipe).__name__}, not a Recipe")
        for position, layer in enumerate(self.chain):
            _check_layer(layer, f"{what}, layer {position}")
        names = [layer.name for layer in self.chain]
        twice = {n for n in names if names.count(n) > 1}
        if twice or "loss" in names or not names:
            wrong = f"layer name used twice: {min(twice)}" if twice else "a layer cannot be 'loss'"
            raise InputError(f"{what}: {wrong if names else 'it has no layers'}")
        if sums := [name for name in names if f"{name}.sum" in names]:
            raise InputError(
                f"{what}: {sums[0]}.sum is what the sum of {sums[0]}'s parts is called",
                remedy=f"another name for the layer {sums[0]}.sum",
            )
        if len(self.layers[-2].output_shape) != 1:
            raise InputError(f"{what}: its last layer must give class scores (a Linear)")
        if not any(layer.has_weights for layer in self.chain):
            raise InputError(f"{what}: no layer has weights, so there is nothing to train")

    @cached_property
    def layers(self) -> tuple[SizedLayer, ...]:
        """Every layer with its shapes, the loss last."""
        sized, shape = [], self.input_shape
        for layer in (*self.chain, CrossEntropy(name="loss")):
            after = layer.output_shape(shape)
            check(after, tuple[Count, ...], f"layer {layer.name}: output_shape of {shape}")
            found = SizedLayer(layer, shape, after)
            _check_connections(found)
            sized.append(found)
            shape = after
        return tuple(sized)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @property
    def classes(self) -> int:
        """Number of class scores."""
        return self.layers[-2].out_channels

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one image, forward."""
        return sum(layer.macs for layer in self.layers)


def _as_tuple(values: Any, what: str) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        found = type(values).__name__
        raise InputError(f"{what}: found a {found}; allowed: a tuple or a list") from None


def _check_layer(layer: object, what: str) -> None:
    """A layer is one of ours or says itself what it computes."""
    if not isinstance(layer, Layer):
        of = type(layer)
        raise InputError(
            f"{what}: found {of.__module__}.{of.__qualname__}, which is no layer",
            remedy="a kind of orchestrator.models, or a frozen dataclass that extends its Layer",
        )
    kind = type(layer)
    check_fields(layer, f"layer {layer.name}")  # its own __post_init__ may not have
    check(kind.kind, Kind, f"layer {layer.name}: kind of {kind.__name__}")
    if kind.forward is Layer.forward:
        own = (
            "the model adds its loss itself"
            if isinstance(layer, CrossEntropy)
            else (f"{kind.__name__} does not say what it computes")
        )
        raise InputError(
            f"layer {layer.name}: {own}",
            remedy="leave it out" if isinstance(layer, CrossEntropy) else "define its forward",
        )
    if kind.kind in ("sum", "loss") and kind is not Sum:
        raise InputError(f"layer {layer.name}: kind {kind.kind!r} is ours; name yours differently")
    try:
        hash(layer)  # layers are keys of memos
    except TypeError as error:
        raise InputError(
            f"layer {layer.name}: {error}; every field must be hashable",
            remedy="a tuple in place of a list",
        ) from error


def _check_connections(sized: SizedLayer) -> None:
    """What a layer says that it reads, and its weights, fit its shapes; refuses groups and columns
    that do not divide."""
    layer, shape, what = sized.layer, sized.input_shape, f"layer {sized.name}"
    terms = layer.terms(shape)
    if bool(terms) != sized.has_weights:
        has = "has weights but no terms" if sized.has_weights else "has terms but not has_weights"
        raise InputError(f"{what}: its kind {sized.kind} {has}")
    check_reads(layer, shape, layer.reads(shape, ((0, sized.out_channels),)))
    if not terms:
        return
    outs = tuple(term.out for term in terms)
    covers = [0, *(stop for _, stop in outs)] == [*(start for start, _ in outs), sized.out_channels]
    if not covers or {term.fan for term in terms} != {(0, sized.fan_in)}:
        raise InputError(
            f"{what}: its terms must cover output channels 0 to {sized.out_channels} in order, "
            f"all with one fan, which begins at 0"
        )
    check(layer.kernel_values(shape), Count, f"{what}: kernel_values")
    check(layer.kernel_shape(shape), tuple[Count, ...], f"{what}: kernel_shape")
    check(layer.macs_per_weight(shape), Zeros, f"{what}: macs_per_weight")
    check(layer.initial_bias(), float, f"{what}: initial_bias")
