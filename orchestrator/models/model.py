"""A model: a chain of named layers, sized for one input, ending in its loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from orchestrator.errors import InputError
from orchestrator.models.layers import CrossEntropy, Layer, Shape, SizedLayer


@dataclass(frozen=True)
class Recipe:
    """How the model's authors trained it; a plan's ``training`` overrides single values.

    The update is the 2012 paper's, with the rate inside the velocity:
    v <- momentum v - weight_decay lr w - lr g;  w <- w + v. Biases are not decayed.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """Layers in order with their shapes. ``layers`` ends with the loss, named ``loss``.

    Args:
        name: what the model is called.
        input_shape: (channels, height, width) of one image.
        chain: the layers from image to class scores, names unique.

    Raises:
        InputError: a name twice, ``loss`` as a name, or shapes that do not fit.
    """

    name: str
    input_shape: Shape
    chain: tuple[Layer, ...]
    recipe: Recipe = Recipe()

    def __init__(
        self, name: str, input_shape: Shape, chain: Iterable[Layer], recipe: Recipe | None = None
    ) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "input_shape", tuple(input_shape))
        object.__setattr__(self, "chain", tuple(chain))
        object.__setattr__(self, "recipe", recipe or Recipe())
        hash(self.chain)  # layers are values, and keys of memos: a list in one fails here
        names = [layer.name for layer in self.chain]
        twice = {n for n in names if names.count(n) > 1}
        if twice or "loss" in names or not names:
            what = f"layer name used twice: {min(twice)}" if twice else "a layer cannot be 'loss'"
            raise InputError(f"model {name}: {what if names else 'it has no layers'}")
        if len(self.layers[-2].output_shape) != 1:
            raise InputError(f"model {name}: its last layer must give class scores (a Linear)")

    @cached_property
    def layers(self) -> tuple[SizedLayer, ...]:
        """Every layer with its shapes, the loss last."""
        sized, shape = [], self.input_shape
        for layer in (*self.chain, CrossEntropy(name="loss")):
            after = layer.output_shape(shape)
            layer.terms(shape)  # refuses groups and columns that do not divide
            sized.append(SizedLayer(layer, shape, after))
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
