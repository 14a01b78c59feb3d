"""Layers at their places in a model, and the parts of them that ranks compute.

The rest of the package asks layers through these two: answers that do not change are kept, and
those of users' own kinds are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, shape_of, volume, within
from orchestrator.models.fields import NonNegative, check
from orchestrator.models.layer import Cut, Layer, Statistics
from orchestrator.models.layer_costs import Kernel, LayerMemory, Pass
from orchestrator.models.model_file import is_of_user, user_error
from orchestrator.models.parameter import ParameterSpec, Tile
from orchestrator.models.pieces import cut_out
from orchestrator.models.ranges import Ranges
from orchestrator.models.user_kinds import (
    asking,
    check_reads,
    check_tensor,
    check_tiles,
    dtype_of,
    require,
)
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True)
class SizedLayer:
    """A layer at its place in a model.

    Args:
        layer: the layer.
        inputs: what it reads.
        output: what it gives.
        sources: names of the layers that it reads from, :data:`INPUT` and :data:`LABELS` included.
        half_of: the layer of the model of which it is the other half, placed by the compiler; ""
            for a layer of the model.
    """

    layer: Layer
    inputs: tuple[Value, ...]
    output: Value
    sources: tuple[str, ...] = ()
    half_of: str = ""

    @classmethod
    def of(
        cls, layer: Layer, *inputs: Value, sources: tuple[str, ...] = (), half_of: str = ""
    ) -> SizedLayer:
        """The layer behind these values."""
        return cls(layer, inputs, layer.output(*inputs), sources, half_of)

    @cached_property
    def _hash(self) -> int:
        return hash((self.layer, self.inputs, self.output, self.sources, self.half_of))

    def __hash__(self) -> int:
        return self._hash  # asked for by every memo

    @property
    def name(self) -> str:
        """The layer's name, unique in its model."""
        return self.layer.name

    @property
    def model_layer(self) -> str:
        """The name of the layer of the model that it is, or of which it is a half."""
        return self.half_of or self.name

    @property
    def kind(self) -> str:
        """The kind of layer: conv, linear, relu, ..."""
        return self.layer.kind

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input."""
        return self.inputs[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the output."""
        return self.output.shape

    @cached_property
    def tied(self) -> frozenset[str]:
        """Names of its parameters that are another layer's."""
        return frozenset(spec.name for spec in self.specs if spec.tied_to)

    @cached_property
    def running(self) -> frozenset[str]:
        """Names of its parameters that are not trained, and have an update of their own."""
        return frozenset(spec.name for spec in self.specs if spec.update is not None)

    @cached_property
    def specs(self) -> tuple[ParameterSpec, ...]:
        """The layer's parameters."""
        return self.layer.parameters(*self.inputs)

    @property
    def has_weights(self) -> bool:
        """Whether the layer keeps anything from step to step."""
        return bool(self.specs)

    def spec(self, name: str) -> ParameterSpec:
        """A parameter by its name."""
        return next(spec for spec in self.specs if spec.name == name)

    @cached_property
    def parameters(self) -> int:
        """Values that the whole layer trains; those of a tied one are counted at its owner."""
        trained = (x for x in self.specs if not x.tied_to and x.update is None)
        return sum(prod(spec.shape) for spec in trained)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the whole layer for one example, forward."""
        everything = self.output.whole
        return self.layer.macs(self, everything, self.reads(everything))

    def reads(self, out: Box) -> tuple[Box, ...]:
        """The box of each input that the box ``out`` of the output needs."""
        return _reads(self, out)

    def uncut(self, axis: str) -> str:
        """Why the output cannot be cut along an axis that it has; "" if it can."""
        with asking(self.layer, f"uncut fails for {axis}"):
            return self.layer.uncut(self, axis)

    def from_inputs(self, channels: Ranges) -> Box | None:
        """The output to which some input channels contribute a partial sum; None if it is no sum
        over its input channels."""
        with asking(self.layer, f"from_inputs fails for channels {channels}"):
            return self.layer.from_inputs(self, channels)

    def statistics(self, cut: Cut) -> Statistics | None:
        """The two halves of a layer that a cut takes apart."""
        with asking(self.layer, "statistics fails"):
            return self.layer.statistics(self, cut)

    def part(self, out: Box, reads: tuple[Box, ...]) -> LayerPart:
        """The part that computes ``out`` from ``reads``."""
        return _part(self, out, reads)

    def whole(self, inputs: Tensors, parameters: NamedTensors, draw: Draw | None) -> Tensor:
        """The layer's :meth:`Layer.whole`; what a user's kind gives is checked.

        Raises:
            InputError: a user's code fails, or gives what it should not.
        """
        layer = self.layer
        if not is_of_user(type(layer)) or type(layer).whole is Layer.whole:
            return layer.whole(self, inputs, parameters, draw)
        with asking(layer, "whole fails"):
            y = layer.whole(self, inputs, parameters, draw)
        shape = (len(inputs[0]), *self.output_shape)
        dtype = dtype_of(inputs, parameters.values())
        remedy = "the sizes of sized.output_shape, or an output that says these"
        check_tensor(y, shape, dtype, f"layer {layer.name}: its whole gives", remedy)
        return y


class LayerPart(NamedTuple):
    """A rank's part of one layer; ranks that differ in their examples share it.

    Args:
        sized: the layer.
        out: the box of the output that it computes.
        reads: the box of each input that it needs.
        tiles: the parts of its parameters that it holds.
        parameters: values in them, those that are not trained included.
        macs_per_example: multiply-adds for one example, forward.
    """

    sized: SizedLayer
    out: Box
    reads: tuple[Box, ...]
    tiles: tuple[Tile, ...]
    parameters: int
    macs_per_example: int

    @property
    def running_values(self) -> int:
        """Of its parameters' values, those that are not trained."""
        running = self.sized.running
        return sum(volume(x.box) for x in self.tiles if x.parameter in running) if running else 0

    @property
    def read_values(self) -> int:
        """Values of one example's inputs, integers left out."""
        both = zip(self.reads, self.sized.inputs, strict=True)
        return sum(volume(box) for box, value in both if not value.integer)

    @property
    def written_values(self) -> int:
        """Values of one example's output."""
        return volume(self.out)

    def take_out(self, x: Tensor, number: int = 0) -> Tensor:
        """The box ``out`` of a tensor that has the box of an input, of the same axes.

        Args:
            x: (n, sizes of that box).
            number: of the input.
        """
        return cut_out(x, (((0, len(x)),), *within(self.out, self.reads[number])))

    def bytes(self, examples: int, itemsize: int) -> tuple[int, int]:
        """Of its inputs, integers left out, and of its output."""
        each = examples * itemsize
        return each * self.read_values, each * self.written_values

    def memory(self, examples: int, itemsize: int) -> LayerMemory:
        """Bytes of the part over some examples; what a user's kind says is checked.

        Raises:
            InputError: it fails, or says something else.
        """
        with asking(self.sized.layer, "memory fails"):
            found = self.sized.layer.memory(self, examples, itemsize)
        if is_of_user(type(self.sized.layer)):
            fits = isinstance(found, LayerMemory) and found.is_whole
            allowed = "LayerMemory of whole numbers"
            require(fits, self.sized.layer, "memory", found, allowed)
        return found

    def kernels(self, examples: int, direction: Pass, itemsize: int) -> tuple[Kernel, ...]:
        """What a device runs for one pass; what a user's kind says is checked.

        Raises:
            InputError: it fails, or says something else.
        """
        with asking(self.sized.layer, "kernels fails"):
            found = self.sized.layer.kernels(self, examples, direction, itemsize)
        if is_of_user(type(self.sized.layer)):
            fits = isinstance(found, tuple) and all(isinstance(k, Kernel) for k in found)
            require(fits, self.sized.layer, "kernels", found, "a tuple of Kernels")
        return found

    def signature(self) -> str:
        """What its time depends on besides shapes; of a user's kind, text.

        Raises:
            InputError: it fails, or says something else.
        """
        with asking(self.sized.layer, "signature fails"):
            found = self.sized.layer.signature(self)
        require(isinstance(found, str), self.sized.layer, "signature", found, "text")
        return found

    def compute(self, inputs: Tensors, parameters: Tensors, draw: Draw | None) -> Tensor:
        """The layer's :meth:`Layer.compute`; what a user's kind gives is checked.

        Raises:
            InputError: a user's code fails, or gives what it should not.
        """
        layer = self.sized.layer
        if not is_of_user(type(layer)):
            return layer.compute(self, inputs, parameters, draw)
        import torch

        try:
            y = layer.compute(self, inputs, parameters, draw)
        except Exception as error:
            raise user_error(error, f"layer {layer.name} fails") from error
        shape = (len(inputs[0]), *self.output_shape)
        dtype = dtype_of(inputs, parameters)
        remedy = "the sizes of part.output_shape, or an output and reads that say these"
        check_tensor(y, shape, dtype, f"layer {layer.name}: its compute gives", remedy)
        needs = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters))
        if needs and not y.requires_grad:
            raise InputError(
                f"layer {layer.name}: its compute gives what autograd cannot follow to its input",
                remedy="no detach(), no_grad() or numpy in it",
            )
        return y

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Of one example's inputs."""
        return tuple([shape_of(box) for box in self.reads])

    @property
    def output_shape(self) -> Shape:
        """Of one example's output."""
        return shape_of(self.out)


# Every rank of every plan asks a layer the same few questions, so the answers are kept.
@lru_cache(maxsize=65_536)
def _reads(sized: SizedLayer, out: Box) -> tuple[Box, ...]:
    if not is_of_user(type(sized.layer)):
        return sized.layer.reads(sized, out)
    with asking(sized.layer, f"reads fails for the box {out}"):
        found = sized.layer.reads(sized, out)
    return check_reads(sized, found)


@lru_cache(maxsize=65_536)
def _part(sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> LayerPart:
    layer = sized.layer
    if not is_of_user(type(layer)):
        tiles = layer.tiles(sized, out, reads) if sized.has_weights else ()
        macs = layer.macs(sized, out, reads)
    else:
        with asking(layer, f"tiles fails for the box {out}"):
            tiles = layer.tiles(sized, out, reads) if sized.has_weights else ()
        check_tiles(sized, tiles)
        with asking(layer, f"macs fails for the box {out}"):
            macs = layer.macs(sized, out, reads)
        check(macs, NonNegative, f"layer {sized.name}: macs of the box {out}")
    parameters = sum(volume(tile.box) for tile in tiles)
    return LayerPart(sized, out, reads, tiles, parameters, macs)
