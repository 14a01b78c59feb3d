"""Layer kinds held against themselves: any box of the output as a part of the whole layer.

A case is a kind with what it reads. A part computes a drawn box of some examples from the boxes
that it says it reads; it has to give what :meth:`Layer.whole` has there, and the same gradients of
inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from orchestrator.models import Layer, SizedLayer, Value
from orchestrator.models.box import Box, is_empty
from orchestrator.models.pieces import cut_out
from orchestrator.models.ranges import Ranges, normalise
from orchestrator.models.sized import LayerPart
from orchestrator.models.value import IMAGE_AXES, SEQUENCE_AXES, VECTOR_AXES

EXAMPLES = 3


def image(channels: int, height: int, width: int) -> Value:
    return Value((channels, height, width), IMAGE_AXES)


def sequence(tokens: int, channels: int) -> Value:
    return Value((tokens, channels), SEQUENCE_AXES)


def vector(channels: int) -> Value:
    return Value((channels,), VECTOR_AXES)


def text(tokens: int) -> Value:
    return Value((tokens,), ("token",), integer=True)


@dataclass(frozen=True)
class Case:
    """A kind and what it reads.

    Args:
        steps: by axis, of what size the cuts are multiples, such as a head's channels.
    """

    layer: Layer
    inputs: tuple[Value, ...]
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def sized(self) -> SizedLayer:
        return SizedLayer.of(self.layer, *self.inputs)

    def __str__(self) -> str:
        return self.layer.name


def case(layer: Layer, *inputs: Value, **steps: int) -> Case:
    return Case(layer, inputs, steps)


def runs(size: int, step: int, most: int = 1) -> st.SearchStrategy[Ranges]:
    """Up to ``most`` runs of a size's positions, at multiples of ``step``."""
    bound = st.integers(0, size // step)
    pair = st.tuples(bound, bound).filter(lambda ab: ab[0] != ab[1])
    run = pair.map(lambda ab: (min(ab) * step, max(ab) * step))
    return st.lists(run, min_size=1, max_size=most).map(normalise)


@st.composite
def boxes(draw: st.DrawFn, case: Case) -> Box:
    """A box of a case's output; channels may be two runs."""
    value = case.sized.output
    found: list[Ranges] = []
    for axis, size in zip(value.axes, value.shape, strict=True):
        found.append(draw(runs(size, case.steps.get(axis, 1), 2 if axis == "channel" else 1)))
    return tuple(found)


# -- values and gradients -------------------------------------------------------------------------


def noise(case: Case, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """An input of each value, those with a gradient asking for it."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for value in case.inputs:
        shape = (EXAMPLES, *value.shape)
        if value.integer:
            most = case.layer.vocabulary_size
            found.append(torch.randint(most, shape, generator=generator))
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            found.append(x.to(dtype).requires_grad_())
    return found


def parameters(case: Case, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Noise as parameters, whole."""
    generator = torch.Generator().manual_seed(seed + 1)
    found = {}
    for spec in case.sized.specs:
        x = torch.randn(spec.shape, generator=generator, dtype=torch.float64)
        found[spec.name] = x.to(dtype).requires_grad_()
    return found


def box_of(x: Tensor, box: Box) -> Tensor:
    """A box of each example of a tensor, or nothing of it where the box is empty."""
    return x[:0] if is_empty(box) else cut_out(x, (((0, len(x)),), *box)).contiguous()


def of_part(
    part: LayerPart, rows: slice, inputs: Sequence[Tensor], named: dict[str, Tensor]
) -> Tensor:
    """What a part computes, from nothing but what it reads."""
    read = [box_of(x[rows], box) for x, box in zip(inputs, part.reads, strict=True)]
    tiles = [cut_out(named[tile.parameter], tile.box) for tile in part.tiles]
    return part.sized.layer.compute(part, read, tiles, None)


def check(case: Case, out: Box, rows: slice, seed: int = 0, tolerance: float = 1e-12) -> None:
    """A part gives what the whole has there, and its gradients."""
    sized = case.sized
    part = sized.part(out, sized.reads(out))
    inputs, named = noise(case, seed), parameters(case, seed)
    ours = of_part(part, rows, inputs, named)
    everything = sized.layer.whole(sized, inputs, named, None)
    assert everything.shape == (EXAMPLES, *sized.output.shape)
    expected = box_of(everything[rows], out)
    assert ours.shape == expected.shape == (len(everything[rows]), *part.output_shape)
    same(ours, expected, tolerance)
    gradient = torch.randn(
        ours.shape, generator=torch.Generator().manual_seed(seed + 2), dtype=ours.dtype
    )
    wanted = [x for x in [*inputs, *named.values()] if x.requires_grad]
    mine = torch.autograd.grad(ours, wanted, gradient, materialize_grads=True)
    theirs = torch.autograd.grad(expected, wanted, gradient, materialize_grads=True)
    for a, b in zip(mine, theirs, strict=True):
        same(a, b, tolerance)


def same(ours: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Equal to within ``tolerance`` of the largest value, or of 1."""
    assert ours.shape == expected.shape
    if ours.numel():
        size = expected.detach().abs().max().clamp_min(1)
        error = float((ours - expected).detach().abs().max() / size)
        assert error <= tolerance, f"differs by {error:.1e}"


# -- memory ---------------------------------------------------------------------------------------


def held(case: Case, out: Box, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that autograd holds for a part's backward, predicted and measured; parameters apart."""
    sized = case.sized
    part = sized.part(out, sized.reads(out))
    inputs = [
        box_of(x.detach(), box).clone().requires_grad_(x.is_floating_point())
        for x, box in zip(noise(case, 0, dtype), part.reads, strict=True)
    ]
    named = parameters(case, 0, dtype)
    tiles = [
        cut_out(named[tile.parameter], tile.box).detach().clone().requires_grad_()
        for tile in part.tiles
    ]
    return held_by(part, inputs, tiles)


def held_by(part: LayerPart, inputs: Sequence[Tensor], tiles: Sequence[Tensor]) -> tuple[int, int]:
    """The same, of given tensors."""
    weights = {tile.untyped_storage().data_ptr() for tile in tiles}
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        alive.append(x)
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        y = part.sized.layer.compute(part, inputs, tiles, None)
    alive.append(y)
    told = part.sized.layer.memory(part, len(inputs[0]), inputs[0].element_size())
    each = [x.nbytes if x.is_floating_point() else 0 for x in inputs]
    saved_inputs = sum(size for n, size in enumerate(each) if told.holds(n))
    predicted = told.saved + saved_inputs + told.saves_output * told.after
    return predicted, sum(storages.values())
