"""What oneDNN, torch's library on processors, needs for a moment to compute a convolution.

Its kernels read and write layouts of their own, so that inputs, outputs and weights are copied on
the way in and out. A layout holds channels in blocks: padded to a multiple of 16, 8 or 4, or of 1
where it only puts channels last. Each pass allocates in this order, which torch's profiler shows::

    forward             input', weight', output'; then the output, when input' and weight' are gone
    gradient of input   gradient', weight', input gradient'; then the input gradient, likewise
    gradient of weight  gradient', input', weight gradient'; then the weight gradient, likewise

Which layouts are chosen was read from the library's own record (``ONEDNN_VERBOSE``) for 500
convolutions of random sizes: oneDNN 3.12 in torch 2.13, AVX-512, float32, one thread (2026-11-24).
Of 250 others with other numbers of channels, 732 of 750 passes were within 2 % of input, output,
weight and copies; one rule, for 2 input channels, was mended by these. Not counted are the buffers
of single kernels, some 0.1 MB. Other processors and versions choose other layouts. Several threads
hand convolutions of kernel 1 over few examples to the library, too, so that more is copied.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.models.layer_costs import FLOAT32, Copies

BLOCK = 16  # channels: the values of a register
FEW = 4  # channels of an input that is read as it is, as an image
NATIVE_EXAMPLES = 16  # from which on torch hands every convolution to the library


class Convolution(NamedTuple):
    """Sizes of one call.

    Args:
        read, computed: channels of input and output.
        pixels_in, pixels_out: of one channel, padding by the caller included.
    """

    examples: int
    read: int
    pixels_in: int
    computed: int
    pixels_out: int
    kernel: int
    stride: int
    groups: int

    @property
    def input(self) -> int:
        """Bytes."""
        return self.inputs(1)

    @property
    def output(self) -> int:
        """Bytes."""
        return self.outputs(1)

    @property
    def weight(self) -> int:
        """Bytes."""
        return self.weights(1, 1)

    def inputs(self, block: int) -> int:
        """Bytes of the input in blocks of channels."""
        return _padded(self.read, block) * self.pixels_in * self.examples * FLOAT32

    def outputs(self, block: int) -> int:
        """Bytes of the output in blocks of channels."""
        return _padded(self.computed, block) * self.pixels_out * self.examples * FLOAT32

    def weights(self, out: int, into: int) -> int:
        """Bytes of the weight in blocks of output and of input channels."""
        channels = _padded(self.computed, out) * _padded(self.read // self.groups, into)
        return channels * self.kernel**2 * FLOAT32

    @property
    def columns(self) -> int:
        """Bytes of one image and group as a matrix, a row for each weight of an output channel."""
        taps = self.read // self.groups * self.kernel**2
        return taps * self.pixels_out * FLOAT32


def copies(call: Convolution) -> Copies:
    """Bytes of the copies of one call."""
    if call.kernel == call.stride == 1 and call.examples < NATIVE_EXAMPLES:
        return _native(call)
    if call.groups == 1:
        forward, of_input, of_weight = _dense(call)
    elif call.groups == call.read == call.computed:
        forward, of_input, of_weight = _depthwise(call)
    else:
        forward, of_input, of_weight = _grouped(call)
    return Copies(forward, max(of_input - call.weight, of_weight), of_weight, of_input)


def _native(call: Convolution) -> Copies:
    """torch's own product of matrices, which one thread takes: group by group, put together."""
    if call.groups == 1:
        return Copies()
    each = (call.input + call.output) // call.groups
    return Copies(call.output, max(call.input, each), each, call.input)


def _dense(call: Convolution) -> tuple[int, int, int]:
    """Bytes above the output, above the input's gradient, above the weight's."""
    read, computed = call.inputs(BLOCK), call.outputs(BLOCK)
    weight, flat = call.weights(BLOCK, BLOCK), call.weights(BLOCK, 1)
    blocked = call.kernel == 1 or call.read >= BLOCK
    if call.kernel == 1 and call.stride > 1:  # one image, its skipped pixels left out
        weight += read // call.examples // call.pixels_in * call.pixels_out
    if blocked:
        forward = max(read + weight + computed - call.output, computed)
    else:
        forward = max(flat + computed - call.output, computed)
    if call.stride > 1:
        of_input = _channels_last(call, call.weights(1, BLOCK))
    else:
        of_input = max(computed + weight + read - call.input, read)
    if blocked:
        of_weight = read + computed + weight
    elif call.read < FEW:
        of_weight, weight = computed + flat, flat
    else:
        weight = call.weights(8, 8)
        of_weight = call.inputs(8) + call.outputs(8) + weight
    return forward, of_input, max(of_weight - call.weight, weight)


def _depthwise(call: Convolution) -> tuple[int, int, int]:
    read, computed, weight = call.inputs(BLOCK), call.outputs(BLOCK), call.weights(BLOCK, 1)
    forward = max(read + weight + computed - call.output, computed)
    of_input = max(computed + weight + read - call.input, read)
    if call.kernel == 3 or call.kernel == call.stride == 1:
        return forward, of_input, max(read + computed + weight - call.weight, weight)
    return forward, of_input, call.columns + 4 * call.weight


def _grouped(call: Convolution) -> tuple[int, int, int]:
    """Blocks that divide a group's channels; where none does, images as matrices, one by one."""
    sides = call.read // call.groups, call.computed // call.groups
    block = next((b for b in (16, 8, 4) if not any(side % b for side in sides)), 0)
    columns = call.columns + 4 * call.weight
    forward = max(call.input + call.weight, call.output) if block else call.output
    if call.stride > 1 and sides[1] >= BLOCK:
        of_input = _channels_last(call, call.weight)
    else:
        of_input = max(call.output + call.weight if block else call.columns, call.input)
    return forward, of_input, call.input + call.output if block > 4 else columns


def _channels_last(call: Convolution, weight: int) -> int:
    """Above an input's gradient that the library gives with its channels last: it is copied as it
    lies, then turned, and all three are alive."""
    return max(call.output + weight, 2 * call.input)


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block
