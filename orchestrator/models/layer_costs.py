"""What a part of a layer costs a device: bytes of memory, kernels, copies."""

from __future__ import annotations

from typing import Literal, NamedTuple

Pass = Literal["forward", "backward", "backward_input", "backward_weight"]
FLOAT32 = 4  # bytes; the least in which statistics, softmax and losses are computed
INT64 = 8  # bytes: places of maxima, labels, and the hash behind a dropout mask


class LayerMemory(NamedTuple):
    """Bytes of one layer part for one chunk.

    Args:
        before, after: its input and output.
        saves_input, saves_output: whether the graph holds them for the backward.
        saved_inputs: numbers of those that it holds, where it does not hold all.
        saved: what else the graph holds.
        forward_extra, backward_extra: what is needed for a moment besides.
        input_extra: of that, what only the gradients of inputs need.
        weights: its parameters, and so their gradients.
        same: the output is the input, no new tensor.
        passes_gradient: the gradients of its inputs are that of its output or views of it, no new
            tensors.
    """

    before: int
    after: int
    saves_input: bool = False
    saves_output: bool = False
    saved: int = 0
    forward_extra: int = 0
    backward_extra: int = 0
    weights: int = 0
    same: bool = False
    passes_gradient: bool = False
    saved_inputs: tuple[int, ...] = ()
    input_extra: int = 0

    def holds(self, number: int) -> bool:
        """Whether the graph holds an input for the backward."""
        return self.saves_input or number in self.saved_inputs

    @property
    def is_whole(self) -> bool:
        """Whether all of it is whole numbers, which a user's kind may miss."""
        inputs = self.saved_inputs
        numbers = [n for n in self if n is not inputs]
        return isinstance(inputs, tuple) and all(isinstance(n, int) for n in (*numbers, *inputs))


class Kernel(NamedTuple):
    """One kernel of a pass, which reads and writes each of its tensors once: what a window reads
    twice comes from a cache.

    Args:
        flops: operations; a multiply-add is two.
        bytes: read from memory and written to it.
        product: values of the matrix that it computes, where it is a product; else 0.
    """

    flops: int
    bytes: int
    product: int = 0


class Copies(NamedTuple):
    """Bytes that a library needs for a moment, for copies in a layout of its own.

    Args:
        forward: above the output.
        backward, weights_only, input_only: above the gradients, of both, and of either alone.
    """

    forward: int = 0
    backward: int = 0
    weights_only: int = 0
    input_only: int = 0
