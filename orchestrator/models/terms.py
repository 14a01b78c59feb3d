"""Weights as terms: output channels that read the same input channels.

    grouped convolution, 2 groups          partial connectivity (four columns, conv3)

      out 0:128  <- in 0:48                  out 0:96   <- in columns a, b, c
      out 128:256 <- in 48:96                out 96:192 <- in columns a, b, d   ...

A part of such a layer is some output channels from some input channels. It holds a tile of the
weight for each run of output channels and of fan-in channels, and does a product with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape
from orchestrator.models.fields import Bounds, Count
from orchestrator.models.in_turn import Turn, backward_extra, forward_extra
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import Copies, Kernel, LayerMemory, Pass
from orchestrator.models.parameter import Constant, Normal, ParameterSpec, Tile
from orchestrator.models.pieces import take
from orchestrator.models.ranges import Range, Ranges, at, intersect, local, normalise, size
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import Tensors
    from orchestrator.models.randomness import Draw


class Term(NamedTuple):
    """Output channels ``out`` take the weights of fan-in channels ``fan`` times input ``reads``.

    ``fan`` counts along the second dimension of the weight, in channels, from 0 for each output
    channel, so that a grouped convolution's second group has ``fan`` (0, 48), ``reads`` (48, 96).
    """

    out: Range
    fan: Range
    reads: Ranges


@dataclass(frozen=True, kw_only=True)
class Weighted(Layer):
    """A layer with a weight, whose terms say which channels it connects, and a bias.

    Args:
        groups: equal groups of output channels, each of which reads its own group of inputs.
        weight_std: initial weights are drawn from N(0, weight_std).
        tied: ``layer.parameter`` that is its weight, as the table of an embedding.
        bias: initial bias; None for a layer without one.
    """

    groups: Count = 1
    weight_std: Annotated[float, Bounds(0)] = 0.01
    bias: float | None = 0.0
    tied: str = ""
    is_matrix: ClassVar[bool] = False  # its products are of two matrices

    # -- what a kind says

    def weight_shape(self, value: Value, fan_in: int) -> Shape:
        """Of the whole weight, as torch keeps it; dimension 1 counts fan-in channels, each
        ``shape[1] / fan_in`` times."""
        raise NotImplementedError

    def multiply(
        self, part: LayerPart, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
    ) -> Tensor:
        """One product over prepared input, with equal groups."""
        raise NotImplementedError

    def prepare(self, part: LayerPart, x: Tensor) -> Tensor:
        """The input as :meth:`multiply` takes it."""
        return x

    def terms(self, inputs: int, outputs: int) -> tuple[Term, ...]:
        """How the weight connects output to input channels.

        Raises:
            InputError: channels that do not divide into groups.
        """
        groups = self.groups
        inside, outside = (inputs // groups, outputs // groups) if groups > 0 else (0, 0)
        if groups < 1 or inside * groups != inputs or outside * groups != outputs:
            raise InputError(
                f"layer {self.name}: {inputs} -> {outputs} channels do not divide into "
                f"{groups} groups"
            )
        return tuple(
            Term((g * outside, (g + 1) * outside), (0, inside), ((g * inside, (g + 1) * inside),))
            for g in range(groups)
        )

    # -- what follows from it

    def channel_reads(self, sized: SizedLayer, out: Box) -> Ranges:
        """Input channels that the output channels of a box need."""
        wanted = sized.output.along(out, "channel")
        found = _terms_of(sized)
        return normalise(r for term in found if intersect((term.out,), wanted) for r in term.reads)

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        (value,) = inputs
        outputs = self.output(value).channels
        fan_in = self.terms(value.channels, outputs)[0].fan[1]
        shape = self.weight_shape(value, fan_in)
        weight = ParameterSpec("weight", shape, Normal(self.weight_std), tied_to=self.tied)
        if self.bias is None:
            return (weight,)
        bias = ParameterSpec("bias", (outputs,), Constant(self.bias), ("channel",), decays=False)
        return (weight, bias)

    def tiles(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> tuple[Tile, ...]:
        """Rectangles of the weight, then the bias.

        Where a layer is split on its input, the bias is with the rank that has the channel's first
        fan-in.
        """
        wanted, inside = _channels(sized, out, reads)
        weight = sized.spec("weight")
        inner = weight.shape[1] // _terms_of(sized)[0].fan[1]
        rest = tuple([((0, n),) for n in weight.shape[2:]])
        found = [
            Tile("weight", ((t.out,), ((t.fan[0] * inner, t.fan[1] * inner),), *rest))
            for t in _rectangles(sized, wanted, inside)
        ]
        if self.bias is not None:
            channels = normalise(t.out for t in part_terms(sized, wanted, inside) if t.fan[0] == 0)
            if channels:
                found.append(Tile("bias", (channels,)))
        return tuple(found)

    def from_inputs(self, sized: SizedLayer, channels: Ranges) -> Box | None:
        everything = ((0, sized.output.channels),)
        touched = normalise(t.out for t in part_terms(sized, everything, channels))
        at_channel = sized.output.axes.index("channel")
        box = list(sized.output.whole)
        box[at_channel] = touched
        return tuple(box)

    def macs(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> int:
        wanted, inside = _channels(sized, out, reads)
        weight = sized.spec("weight").shape
        per_pair = prod(weight[1:]) // _terms_of(sized)[0].fan[1]
        axes = sized.output.axes
        positions = prod(size(r) for r, axis in zip(out, axes, strict=True) if axis != "channel")
        pairs = sum(
            (t.out[1] - t.out[0]) * (t.fan[1] - t.fan[0]) for t in part_terms(sized, wanted, inside)
        )
        return pairs * per_pair * positions

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        x, y = examples * part.read_values, examples * part.written_values
        flops = 2 * part.macs_per_example * examples
        moves = (x + y + part.parameters) * itemsize  # each of the products has x, y and w
        read, written = (n // examples if self.is_matrix else 0 for n in (x, y))
        forward = Kernel(flops, moves, examples * written)
        of_input = Kernel(flops, moves, examples * read)
        of_weight = Kernel(flops, moves, read * written)
        return {
            "forward": (forward,),
            "backward": (of_input, of_weight),
            "backward_input": (of_input,),
            "backward_weight": (of_weight,),
        }[direction]

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        sized = part.sized
        wanted, inside = _channels(sized, part.out, part.reads)
        bias_channels: Ranges = ()
        bias = None
        if part.tiles and part.tiles[-1].parameter == "bias":
            (bias_channels,) = part.tiles[-1].box
            bias = parameters[-1]
        x = self.prepare(part, inputs[0])
        dimension = 1 + sized.inputs[0].axes.index("channel")
        runs = []
        for run, products in _products(sized, wanted, inside):
            added = intersect(run, bias_channels)
            row = (
                bias[slice(*local(added, bias_channels)[0])] if bias is not None and added else None
            )
            total: Tensor | None = None
            for product in products:
                weight = parameters[product.tile]
                if product.rows != (0, len(weight)):
                    weight = weight[slice(*product.rows)]
                part_x = take(x, product.reads, dimension)
                y = self.multiply(part, part_x, weight, row, product.groups)
                total = y if total is None else total + y
                row = None
            assert total is not None
            runs.append(total)
        along = 1 + sized.output.axes.index("channel")
        return runs[0] if len(runs) == 1 else torch.cat(runs, along)

    def products(self, part: LayerPart) -> list[Product]:
        """The products that a part is computed by, one after another."""
        runs = _products(part.sized, *_channels(part.sized, part.out, part.reads))
        return [product for _, products in runs for product in products]

    def turns(
        self, part: LayerPart, before: int, after: int, copies: Sequence[Copies]
    ) -> list[Turn]:
        """The same in bytes.

        Args:
            before, after: bytes of input and output.
            copies: by product.
        """
        wanted, inside = (
            size(channels) for channels in _channels(part.sized, part.out, part.reads)
        )
        return [
            Turn(
                before // inside * size(product.reads),
                after // wanted * product.channels,
                size(product.reads) == inside,
                len(product.reads),
                own,
            )
            for product, own in zip(self.products(part), copies, strict=True)
        ]

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        weights = part.parameters * itemsize
        found = LayerMemory(before, after, saves_input=True, weights=weights)
        products = self.products(part)
        if len(products) > 1:
            turns = self.turns(part, before, after, [Copies()] * len(products))
            found = found._replace(
                saved=sum(turn.gathered for turn in turns),
                forward_extra=forward_extra(turns, after),
                backward_extra=backward_extra(turns, before),
            )
        in_one = len(products) == 1 and products[0].groups > 1
        return self.more_memory(part, examples * itemsize, found, in_one=in_one)

    def more_memory(
        self, part: LayerPart, per_value: int, found: LayerMemory, *, in_one: bool
    ) -> LayerMemory:
        """What a kind needs besides.

        Args:
            per_value: bytes of one value of every example.
            in_one: several groups are one call.
        """
        return found

    def dense(self, sized: SizedLayer, weight: Tensor) -> Tensor:
        """The weight of the same layer with every channel connected, zeros where it is not."""
        found = weight.new_zeros(weight.shape[0], *self._dense_rest(sized, weight))
        inner = weight.shape[1] // _terms_of(sized)[0].fan[1]
        for term in _terms_of(sized):
            done = term.fan[0] * inner
            for start, stop in term.reads:
                width = (stop - start) * inner
                rows = slice(*term.out)
                found[rows, start * inner : stop * inner] = weight[rows, done : done + width]
                done += width
        return found

    def _dense_rest(self, sized: SizedLayer, weight: Tensor) -> Shape:
        inner = weight.shape[1] // _terms_of(sized)[0].fan[1]
        return (sized.inputs[0].channels * inner, *weight.shape[2:])

    def words(self) -> str:
        """What the time of a product depends on besides shapes."""
        return ""

    def signature(self, part: LayerPart) -> str:
        groups = len(part_terms(part.sized, *_channels(part.sized, part.out, part.reads)))
        return " ".join(filter(None, [self.words(), f"groups {groups}" if groups > 1 else ""]))


@dataclass(frozen=True)
class Product:
    """One multiplication: rows of a tile with some input channels, for some output channels."""

    tile: int
    rows: Range
    reads: Ranges
    groups: int

    @property
    def channels(self) -> int:
        """Of its output."""
        return self.rows[1] - self.rows[0]


class _Rectangle(NamedTuple):
    out: Range
    fan: Range


def _channels(sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> tuple[Ranges, Ranges]:
    """Channels that a part computes and reads."""
    return sized.output.along(out, "channel"), sized.inputs[0].along(reads[0], "channel")


@lru_cache(maxsize=4096)
def _terms_of(sized: SizedLayer) -> tuple[Term, ...]:
    layer = sized.layer
    assert isinstance(layer, Weighted)
    return layer.terms(sized.inputs[0].channels, sized.output.channels)


@lru_cache(maxsize=65_536)
def part_terms(sized: SizedLayer, out: Ranges, reads: Ranges) -> tuple[Term, ...]:
    """The terms that compute ``out`` from input channels ``reads`` only."""
    found = []
    for term in _terms_of(sized):
        for part in intersect((term.out,), out):
            inside = intersect(term.reads, reads)
            for fan in local(inside, term.reads):
                found.append(Term(part, fan, at(fan, term.reads)))
    return tuple(found)


@lru_cache(maxsize=65_536)
def _rectangles(sized: SizedLayer, out: Ranges, reads: Ranges) -> tuple[_Rectangle, ...]:
    """The rectangles of the weight behind the terms, joined where they touch."""
    found: list[_Rectangle] = []
    for term in part_terms(sized, out, reads):
        last = found[-1] if found else None
        if last and last.fan == term.fan and last.out[1] == term.out[0]:
            found[-1] = _Rectangle((last.out[0], term.out[1]), last.fan)
        else:
            found.append(_Rectangle(term.out, term.fan))
    return tuple(found)


@lru_cache(maxsize=4096)
def _products(
    sized: SizedLayer, out: Ranges, reads: Ranges
) -> tuple[tuple[Ranges, tuple[Product, ...]], ...]:
    """By run of output channels, the products whose sum it is; equal groups done in one call."""
    tiles = _rectangles(sized, out, reads)
    terms = part_terms(sized, out, reads)
    if len(terms) > 1 and len(tiles) == 1 and _are_equal_groups(terms, reads):
        product = Product(
            0, (0, tiles[0].out[1] - tiles[0].out[0]), ((0, size(reads)),), len(terms)
        )
        return (((tiles[0].out,), (product,)),)
    by_out: dict[Range, list[Product]] = {}
    for term in terms:
        for number, tile in enumerate(tiles):
            if tile.fan == term.fan and tile.out[0] <= term.out[0] and term.out[1] <= tile.out[1]:
                rows = (term.out[0] - tile.out[0], term.out[1] - tile.out[0])
                product = Product(number, rows, local(term.reads, reads), 1)
                by_out.setdefault(term.out, []).append(product)
                break
    return tuple(((run,), tuple(products)) for run, products in sorted(by_out.items()))


def _are_equal_groups(terms: tuple[Term, ...], reads: Ranges) -> bool:
    sizes = {(t.out[1] - t.out[0], t.fan) for t in terms}
    laid = tuple(local(t.reads, reads) for t in terms)
    width = size(terms[0].reads)
    return len(sizes) == 1 and laid == tuple(
        ((i * width, (i + 1) * width),) for i in range(len(terms))
    )
