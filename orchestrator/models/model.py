"""A model: a graph of named layers, sized for one example, ending in its loss.

A user writes one as::

    Model("tiny", (3, 32, 32), [
        Conv(name="conv1", channels=32, kernel=3, padding=1),
        ReLU(name="relu1"),
        Conv(name="conv2", channels=32, kernel=3, padding=1),
        Add(name="sum", inputs=("conv2", "relu1")),    # inputs: by default the layer before
        GlobalAveragePool(name="pool"),
        Linear(name="fc", features=10),
    ])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from math import prod
from typing import Annotated, Any, Literal

from orchestrator.errors import InputError
from orchestrator.models.box import Shape, intersection, is_empty, volume
from orchestrator.models.combine import Sum
from orchestrator.models.cross_entropy import CrossEntropy
from orchestrator.models.fields import Bounds, Count, Matches, check, check_fields
from orchestrator.models.layer import Layer, Name
from orchestrator.models.model_file import is_of_user
from orchestrator.models.parameter import Initial, ParameterSpec, RunningAverage
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.user_kinds import asking
from orchestrator.models.value import INPUT, LABELS, Value, value_of
from orchestrator.optimizers import OPTIMIZERS, Optimizer, Sgd2012

LOSS = "loss"
SMALLEST_SCALE = 2.0**-24  # of float16
ModelName = Annotated[str, Matches(r"[\w][\w .+-]{0,99}", "of letters, digits and . _ - +")]
Kind = Annotated[str, Matches(r"[A-Za-z]\w{0,99}", "of letters, digits and _")]


@dataclass(frozen=True)
class Recipe:
    """How the model's authors trained it; a plan's ``training`` overrides single values.

    Args:
        lr: learning rate.
        momentum, weight_decay: of the 2012 paper's update, where no optimizer is named.
        seed: of everything that is drawn.
        optimizer: an optimizer with its own options, such as ``AdamW(betas=(0.9, 0.95))``.
        loss_scale: factor on the loss, for float16.
    """

    lr: Annotated[float, Bounds(0)] = 0.01
    momentum: Annotated[float, Bounds(0, 1, below=True)] = 0.9
    weight_decay: Annotated[float, Bounds(0)] = 0.0005
    seed: Annotated[int, Bounds(0)] = 0
    optimizer: Optimizer | None = None
    loss_scale: Annotated[float, Bounds(SMALLEST_SCALE)] | Literal["dynamic"] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "recipe")
        if not isinstance(self.optimizer, Optimizer | None):
            allowed = ", ".join(kind.__name__ for kind in OPTIMIZERS.values())
            raise InputError(
                f"recipe: optimizer is a {type(self.optimizer).__name__}; allowed: {allowed} of "
                "orchestrator.optimizers",
                remedy="optimizer=AdamW(), or leave it out for the 2012 paper's",
            )

    @property
    def updates(self) -> Optimizer:
        """The optimizer with all its options."""
        return self.optimizer or Sgd2012(self.momentum, self.weight_decay)


@dataclass(frozen=True)
class Model:
    """Layers in an order in which each comes after those that it reads. The loss is added.

    Args:
        name: what the model is called.
        input_shape: (channels, height, width) of one image, (features,) of a vector, (tokens,) of
            a text, (tokens, features) of a sequence.
        declared: the layers from the input to the class scores, names unique.

    Raises:
        InputError: a name twice, ``input``, ``labels`` or ``loss`` as a name, an input that does
            not exist or comes later, a layer that nothing reads, what is no layer or does not say
            what it computes, or shapes that do not fit.
    """

    name: str
    input_shape: Shape
    declared: tuple[Layer, ...]
    recipe: Recipe = Recipe()

    def __init__(
        self, name: str, input_shape: Shape, layers: Iterable[Layer], recipe: Recipe | None = None
    ) -> None:
        check(name, ModelName, "model: name")
        what = f"model {name}"
        shape = _as_tuple(input_shape, f"{what}: input_shape")
        check(shape, tuple[Count, ...], f"{what}: input_shape")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "input_shape", shape)
        object.__setattr__(self, "declared", _as_tuple(layers, f"{what}: layers"))
        object.__setattr__(self, "recipe", recipe or Recipe())
        if not shape:
            raise InputError(f"{what}: input_shape is empty; allowed: such as (3, 32, 32)")
        if not isinstance(self.recipe, Recipe):
            raise InputError(f"{what}: recipe is a {type(recipe).__name__}, not a Recipe")
        for position, layer in enumerate(self.declared):
            _check_layer(layer, f"{what}, layer {position}")
        self._check_names()
        self._check_readers()
        self._check_ties()
        scores = self.layers[-2].output
        if scores.axes[-1:] != ("channel",) or len(scores.axes) > 2:
            raise InputError(f"{what}: its last layer must give class scores (a Linear)")
        if not any(layer.has_weights for layer in self.layers):
            raise InputError(f"{what}: no layer has weights, so there is nothing to train")

    def _check_names(self) -> None:
        names = [layer.name for layer in self.declared]
        twice = {n for n in names if names.count(n) > 1}
        taken = sorted({INPUT, LABELS, LOSS} & set(names))
        if twice or taken or not names:
            what = f"layer name used twice: {min(twice)}" if twice else "it has no layers"
            what = f"a layer cannot be {taken[0]!r}" if taken else what
            raise InputError(f"model {self.name}: {what}")

    def _check_readers(self) -> None:
        read = {source for layer in self.layers for source in layer.sources}
        unread = [layer.name for layer in self.layers[:-1] if layer.name not in read]
        if unread:
            raise InputError(
                f"model {self.name}: nothing reads layer {unread[0]}",
                remedy=f"name it in the inputs of a later layer, or leave {unread[0]} out",
            )

    def _check_ties(self) -> None:
        owned = {
            f"{layer.name}.{spec.name}": spec.shape
            for layer in self.layers for spec in layer.specs if not spec.tied_to
        }  # fmt: skip
        for layer in self.layers:
            for spec in layer.specs:
                if spec.tied_to and owned.get(spec.tied_to) != spec.shape:
                    found = owned.get(spec.tied_to, "no parameter of the model")
                    alike = [
                        name for name, shape in owned.items()
                        if shape == spec.shape and not name.startswith(f"{layer.name}.")
                    ]  # fmt: skip
                    raise InputError(
                        f"model {self.name}: {layer.name}.{spec.name}, {spec.shape}, is tied to "
                        f"{spec.tied_to}, which is {found}; allowed: one of the same shape",
                        remedy=f"tie it to {alike[0]}"
                        if alike
                        else f"sizes of {layer.name} that give it the other's shape, or no tie",
                    )

    @cached_property
    def layers(self) -> tuple[SizedLayer, ...]:
        """Every layer with its shapes, the loss last."""
        values = {INPUT: self.input}
        sized: list[SizedLayer] = []
        before = INPUT
        for layer in self.declared:
            sources = layer.inputs or (before,)
            for source in sources:
                if source not in values:
                    raise self._missing(layer, source)
            count = layer.input_count
            if count is not None and len(sources) != count:
                raise InputError(
                    f"layer {layer.name}: a {layer.kind or type(layer).__name__} reads {count} "
                    f"{'value' if count == 1 else 'values'}, found inputs {', '.join(sources)}"
                )
            inputs = tuple(values[source] for source in sources)
            sized.append(_sized(layer, inputs, sources))
            values[layer.name] = sized[-1].output
            before = layer.name
        scores = values[before]
        labels = Value(scores.shape[:-1], scores.axes[:-1], True)  # the scores' channels are last
        loss = CrossEntropy(name=LOSS, inputs=(before, LABELS))
        sized.append(SizedLayer.of(loss, scores, labels, sources=loss.inputs))
        return tuple(sized)

    def _missing(self, layer: Layer, source: str) -> InputError:
        """Why a layer cannot read from a source that is not before it."""
        what = f"model {self.name}: layer {layer.name}"
        names = [other.name for other in self.declared]
        before = [INPUT, *names[: names.index(layer.name)]]
        instead = f"name a layer before {layer.name} in its inputs, such as {before[-1]}"
        if source not in names:
            near = difflib.get_close_matches(source, names, n=1)
            shown = ", ".join(before if len(before) <= 60 else ["...", *before[-60:]])
            return InputError(
                f"{what} reads {source!r}, which does not exist; before it are: {shown}",
                remedy=f"did you mean {near[0]}?" if near and near[0] in before else instead,
            )
        if source == layer.name:
            return InputError(f"{what} reads itself", remedy=instead)
        way = self._way(source, layer.name)
        if not way:
            return InputError(
                f"{what} reads {source}, which comes later",
                remedy=f"put {source} before {layer.name}",
            )
        steps = [f"{a} reads {b}" for a, b in pairwise([layer.name, *way])]
        shown = ", ".join(steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]])
        return InputError(f"model {self.name}: a cycle: {shown}", remedy=instead)

    def _way(self, start: str, end: str) -> list[str]:
        """The shortest way from one layer to another by what each reads; empty if there is none."""
        reads: dict[str, tuple[str, ...]] = {}
        before = INPUT
        for layer in self.declared:
            reads[layer.name] = layer.inputs or (before,)
            before = layer.name
        ways, seen = [[start]], {start}
        for way in ways:  # grows as it goes
            if way[-1] == end:
                return way
            for source in reads.get(way[-1], ()):
                if source not in seen:
                    seen.add(source)
                    ways.append([*way, source])
        return []

    @cached_property
    def input(self) -> Value:
        """What one example of the data is."""
        readers = [
            layer
            for i, layer in enumerate(self.declared)
            if INPUT in layer.inputs or (i == 0 and not layer.inputs)
        ]
        if len(self.input_shape) == 1 and readers and all(r.reads_tokens for r in readers):
            return Value(self.input_shape, ("token",), True)
        return value_of(self.input_shape)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @property
    def labels(self) -> Value:
        """What the labels of one example are."""
        return self.layers[-1].inputs[1]

    @property
    def classes(self) -> int:
        """Number of class scores."""
        return self.layers[-2].output.channels

    @property
    def vocabulary(self) -> int:
        """Tokens that its input is made of; 0 where that is no text."""
        return max((layer.vocabulary_size for layer in self.declared), default=0)

    @property
    def predictions(self) -> int:
        """Scored positions of one example: 1, or its tokens."""
        return self.labels.shape[0] if self.labels.shape else 1

    @property
    def parameters(self) -> int:
        """Values that are trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one example, forward."""
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
    if layer.is_loss:
        raise InputError(
            f"layer {layer.name}: the model adds its loss itself", remedy="leave it out"
        )
    if kind.compute is Layer.compute:
        raise InputError(
            f"layer {layer.name}: {kind.__name__} does not say what it computes",
            remedy="define its compute",
        )
    if kind.kind in (Sum.kind, CrossEntropy.kind) and kind is not Sum:
        raise InputError(f"layer {layer.name}: kind {kind.kind!r} is ours; name yours differently")
    try:
        hash(layer)  # layers are keys of memos
    except TypeError as error:
        raise InputError(
            f"layer {layer.name}: {error}; every field must be hashable",
            remedy="a tuple in place of a list",
        ) from error


def _sized(layer: Layer, inputs: tuple[Value, ...], sources: tuple[str, ...]) -> SizedLayer:
    """The layer at its place; what it says of its output, inputs and parameters is checked."""
    with asking(layer, "output fails"):
        sized = SizedLayer.of(layer, *inputs, sources=sources)
    what, output = f"layer {layer.name}", sized.output
    if not _is_value(output):
        raise InputError(
            f"{what}: its output gives {output!r}; allowed: a Value with an axis for each size, "
            "no axis twice",
            remedy=f"return Value({_sizes(output)}, {inputs[0].axes!r})",
        )
    shapes = " and ".join(str(value.shape) for value in inputs)
    remedy = "a larger input, or an output that counts otherwise"
    check(output.shape, tuple[Count, ...], f"{what}: output of {shapes}", remedy=remedy)
    _check_parameters(sized)
    reads = sized.reads(output.whole)
    if is_of_user(type(layer)):
        _check_covered(sized, sized.part(output.whole, reads))
    return sized


def _sizes(output: Any) -> str:
    """What was probably meant to be the shape."""
    shape = output.shape if isinstance(output, Value) else output
    fits = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
    return repr(shape) if fits else "shape"


def _is_value(output: Any) -> bool:
    axes = getattr(output, "axes", ())
    return (
        isinstance(output, Value)
        and isinstance(output.shape, tuple)
        and isinstance(axes, tuple)
        and all(isinstance(axis, str) for axis in axes)
        and len(axes) == len(set(axes)) == len(output.shape)
    )


def _check_parameters(sized: SizedLayer) -> None:
    """Names, shapes, axes and initial values of what a layer trains."""
    what, axes = f"layer {sized.name}", sized.output.axes
    with asking(sized.layer, "parameters fails"):
        specs = sized.specs
    if not isinstance(specs, tuple) or not all(isinstance(spec, ParameterSpec) for spec in specs):
        raise InputError(
            f"{what}: parameters gives {specs!r}; allowed: a tuple of ParameterSpecs",
            remedy='return (ParameterSpec("weight", shape, Normal(0.01), axes),)',
        )
    names = [spec.name for spec in specs]
    for spec in specs:
        check(spec.name, Name, f"{what}: name of a parameter")
        if names.count(spec.name) > 1:
            raise InputError(
                f"{what}: parameter name used twice: {spec.name}", remedy="another name for one"
            )
        check(spec.shape, tuple[Count, ...], f"{what}: shape of {spec.name}")
        if not isinstance(spec.initial, Initial):
            raise InputError(
                f"{what}: initial of {spec.name}: found {spec.initial!r}; allowed: such as "
                "Normal(0.01), Uniform(0.1) or Constant(0.0)",
                remedy="one of these, or a frozen dataclass of your own that extends Initial",
            )
        check(spec.decays, bool, f"{what}: decays of {spec.name}")
        check(spec.tied_to, str, f"{what}: tied_to of {spec.name}")
        if spec.update is not None and (
            not isinstance(spec.update, RunningAverage) or spec.tied_to
        ):
            raise InputError(
                f"{what}: update of {spec.name}: found {spec.update!r}; allowed: None, or a "
                "RunningAverage of what is not tied to another layer's"
            )
        known = all(axis is None or axis in axes for axis in spec.axes)
        if not known or (spec.axes and len(spec.axes) != len(spec.shape)):
            raise InputError(
                f"{what}: axes of {spec.name} are {spec.axes}; allowed: for each of its "
                f"{len(spec.shape)} dimensions None or one of {', '.join(axes)}",
                remedy=f"({', '.join(['None'] * len(spec.shape))},) where no split cuts it",
            )


def _check_covered(sized: SizedLayer, everything: LayerPart) -> None:
    """The tiles behind the whole output are all of every parameter, and each value once."""
    for spec in sized.specs:
        boxes = [tile.box for tile in everything.tiles if tile.parameter == spec.name]
        meet = any(not is_empty(intersection(a, b)) for a, b in combinations(boxes, 2))
        if meet or sum(map(volume, boxes)) != prod(spec.shape):
            raise InputError(
                f"layer {sized.name}: tiles of the whole output give {boxes} of {spec.name}; "
                f"allowed: all of its {spec.shape}, nothing twice",
                remedy="leave tiles out, and say the axes of each ParameterSpec",
            )
