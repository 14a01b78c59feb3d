"""Where training stopped being finite: the first layer, in the order of the forward.

A rank looks at its loss before it makes a gradient of it. Then nothing of a loss that is not finite
has left the rank, so no weight of any rank has been changed by it, and every rank still holds what
the forward read. So each finds its own first layer by running its forward once more, layer by
layer, and the first of all ranks is where it began:

    rank 0   conv1  conv2 (weights: inf)  ->            conv2 on rank 0
    rank 1                                    fc3 reads inf

A healthy step costs one comparison of one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.parameters import SegmentParameters
from orchestrator.execute.segment_runner import Saved, SegmentRunner


class Where(IntEnum):
    """In which of a layer's tensors, in the order in which the forward meets them."""

    INPUT = 0
    PARAMETERS = 1
    OUTPUT = 2


class NonFinite(NamedTuple):
    """A layer with a value that is infinite or not a number; the smallest is the first.

    Args:
        position: of the layer in the model.
        where: in which of its tensors; of an output, its input and parameters are finite.
    """

    position: int
    where: Where
    layer: str
    rank: int

    @property
    def of_images(self) -> bool:
        """Whether the data were not finite before any layer saw them."""
        return self.position == 0 and self.where is Where.INPUT

    def __str__(self) -> str:
        if self.where is Where.INPUT:
            if self.of_images:
                return f"the images that rank {self.rank} reads are not finite"
            return f"what {self.layer} reads on rank {self.rank} is not finite"
        if self.where is Where.PARAMETERS:
            return f"the parameters of {self.layer} on rank {self.rank} are not finite"
        return (
            f"the output of {self.layer} on rank {self.rank} is not finite, and what it reads and "
            "its parameters are"
        )


class Divergence(NamedTuple):
    """Why training cannot go on.

    Args:
        rank: the rank that saw it.
        ended: steps that ended before it.
        of_loss: the loss of the next step is not finite; else it was seen in the parameters, as
            they were to be saved.
        found: the first layer, if there is one.
    """

    rank: int
    ended: int
    of_loss: bool
    found: NonFinite | None

    def __str__(self) -> str:
        if self.of_loss:
            text = f"step {self.ended + 1}: the loss on rank {self.rank} is not finite"
            if self.found is None:
                return text
            if self.found.where is Where.INPUT and not self.found.of_images:
                return f"{text}; it came from other ranks: {self.found}"
            return f"{text}; first in the forward: {self.found}"
        return f"after step {self.ended} {self.found}; they are not saved"


class Diverged(RuntimeError):
    """Training met a value that is infinite or not a number, and has stopped."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence)
        self.divergence = divergence

    def __str__(self) -> str:
        return str(self.divergence)


def earliest(found: Iterable[NonFinite | None]) -> NonFinite | None:
    """The first in the order of the forward."""
    return min((one for one in found if one is not None), default=None)


def first_non_finite(interpreter: RankInterpreter) -> NonFinite | None:
    """The first of a rank's layers with a value that is not finite, in a step that has not ended.

    Looks at parameters, and runs again the forward of every chunk whose backward is to come.
    """
    found = [bad_parameters(interpreter)]
    for runner in interpreter.runners.values():
        for saved in list(runner.saved.values()):
            found += list(_in_chunk(interpreter, runner, saved))[:1]
    return earliest(found)


def bad_parameters(interpreter: RankInterpreter) -> NonFinite | None:
    """The first of a rank's layers whose weights, biases or optimizer state are not all
    finite."""
    names = [
        name
        for parameters in interpreter.parameters.values()
        for name, tensor in _tensors(parameters)
        if not _finite(tensor)
    ]
    return earliest(_at(interpreter, name, Where.PARAMETERS) for name in names)


def _in_chunk(
    interpreter: RankInterpreter, runner: SegmentRunner, saved: Saved
) -> Iterator[NonFinite]:
    names = [layer.sized.model_layer for layer in runner.part.layers]
    for found, x in zip(runner.segment.imports, saved.imports, strict=True):
        if not _finite(x):
            yield _at(interpreter, names[found.readers[0][0]], Where.INPUT)
    for name, y in zip(names, runner.again(saved), strict=True):
        if not _finite(y):
            yield _at(interpreter, name, Where.OUTPUT)


def _at(interpreter: RankInterpreter, name: str, where: Where) -> NonFinite:
    return NonFinite(interpreter.program.model.index[name], where, name, interpreter.rank)


def _tensors(parameters: SegmentParameters) -> Iterator[tuple[str, Tensor]]:
    """By the name of their layer."""
    for slot, weight in zip(parameters.slots, parameters.own, strict=True):
        yield slot.layer.name, weight
    for target in parameters.targets:
        yield target.slot.layer.name, target.value
    for number, target in enumerate(parameters.trained):
        for tensors in parameters.state.values():
            yield target.slot.layer.name, tensors[number]


def _finite(tensor: Tensor) -> bool:
    """Whether all values are, without a copy: the least and the greatest tell."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor.detach()))
