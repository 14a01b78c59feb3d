"""The torch side of the layers: any channels of the output from the channels that they read.

Everything is a pure function of tensors. Dropout draws from (seed, layer, step, sample, value),
so a rank that holds half of the features draws the same mask for them as a device that holds all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from orchestrator.errors import InputError
from orchestrator.models.layers import (
    Conv,
    CrossEntropy,
    Dropout,
    ResponseNorm,
    Shape,
    SizedLayer,
    Term,
)
from orchestrator.models.model_file import is_of_user, told
from orchestrator.models.ranges import Ranges, intersect, local, size

__all__ = [
    "Draw",
    "Generator",
    "Shard",
    "Tensor",
    "apply_layer",
    "dropout_mask",
    "initial_weight",
    "loss_sum",
    "nnf",
    "normal",
    "response_norm",
    "seed_of",
    "take",
    "weighted",
]

_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """What randomness depends on besides the layer.

    Args:
        seed: of the run.
        step: number of the training step.
        samples: (n,) int64, place of each example within the global batch of the step.
    """

    seed: int
    step: int
    samples: Tensor


@dataclass(frozen=True)
class Shard:
    """What one rank computes of a layer, and what it has for it.

    Args:
        sized: the layer, with the shapes of one image before and after it.
        out: output channels to compute.
        reads: input channels that are there.
        weights: one tensor per tile of ``sized.tiles(out, reads)``.
        bias: (channels in ``bias_channels``,), added to those channels.
        draw: randomness; None for test time.
    """

    sized: SizedLayer
    out: Ranges
    reads: Ranges
    weights: Sequence[Tensor] = ()
    bias: Tensor | None = None
    bias_channels: Ranges = ()
    draw: Draw | None = None

    def take_out(self, x: Tensor) -> Tensor:
        """The channels ``out`` of a tensor that has the channels ``reads``."""
        return take(x, local(self.out, self.reads))


def seed_of(*names: object) -> int:
    """A 32-bit seed for anything that can be named, the same on every machine."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def apply_layer(
    sized: SizedLayer,
    x: Tensor,
    *,
    out: Ranges,
    reads: Ranges,
    weights: Sequence[Tensor] = (),
    bias: Tensor | None = None,
    bias_channels: Ranges = (),
    draw: Draw | None = None,
) -> Tensor:
    """Output channels ``out`` of one layer.

    Args:
        x: (n, channels in ``reads``, ...).
        weights: one tensor per tile of ``sized.tiles(out, reads)``.
        bias: (channels in ``bias_channels``,), added to those channels.
        draw: randomness for dropout; None for test time.

    Returns:
        (n, channels in ``out``, ...); a partial sum where ``reads`` is less than ``out`` needs.
    """
    shard = Shard(sized, out, reads, weights, bias, bias_channels, draw)
    if not is_of_user(type(sized.layer)):
        return sized.layer.forward(x, shard)
    try:
        y = sized.layer.forward(x, shard)
    except Exception as error:
        raise told(error, f"layer {sized.name} fails") from error
    wanted = (len(x), size(out), *sized.output_shape[1:])
    _check_result(y, wanted, x.dtype, f"layer {sized.name}: its forward gives")
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    if needs and not y.requires_grad:
        raise InputError(
            f"layer {sized.name}: its forward gives what autograd cannot follow to its input",
            remedy="no detach(), no_grad() or numpy in it",
        )
    return y


def _check_result(y: object, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """InputError unless a user's code gave a tensor of this shape and dtype."""
    if isinstance(y, Tensor) and (y.shape, y.dtype) == (shape, dtype):
        return
    given = f"{tuple(y.shape)} in {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
    raise InputError(f"{what} {given}; allowed: {shape} in {dtype}")


def loss_sum(layer: CrossEntropy, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the examples, at least in float32. x (n, classes), labels (n,)."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return nnf.cross_entropy(wide, labels, reduction="sum")


# -- layers with weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    """One multiplication: rows of a tile with some input channels, for some output channels."""

    tile: int
    rows: tuple[int, int]
    reads: Ranges
    groups: int


@lru_cache(maxsize=4096)
def _products(
    sized: SizedLayer, out: Ranges, reads: Ranges
) -> tuple[tuple[Ranges, tuple[_Product, ...]], ...]:
    """By run of output channels, the products whose sum it is; equal groups done in one call."""
    tiles = sized.tiles(out, reads)
    terms = sized.terms(out, reads)
    if len(terms) > 1 and len(tiles) == 1 and _are_equal_groups(terms, reads):
        product = _Product(
            0, (0, tiles[0].out[1] - tiles[0].out[0]), ((0, size(reads)),), len(terms)
        )
        return (((tiles[0].out,), (product,)),)
    by_out: dict[tuple[int, int], list[_Product]] = {}
    for term in terms:
        for number, tile in enumerate(tiles):
            if tile.fan == term.fan and tile.out[0] <= term.out[0] and term.out[1] <= tile.out[1]:
                rows = (term.out[0] - tile.out[0], term.out[1] - tile.out[0])
                product = _Product(number, rows, local(term.reads, reads), 1)
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


def weighted(x: Tensor, shard: Shard) -> Tensor:
    """A convolution or a fully connected layer."""
    sized, layer, bias = shard.sized, shard.sized.layer, shard.bias
    if isinstance(layer, Conv):
        before, after = layer.pads
        if before != after:
            x = nnf.pad(x, (before, after, before, after))
    runs = []
    for run, products in _products(sized, shard.out, shard.reads):
        added = intersect(run, shard.bias_channels)
        row = (
            bias[slice(*local(added, shard.bias_channels)[0])]
            if bias is not None and added
            else None
        )
        total: Tensor | None = None
        for product in products:
            weight = shard.weights[product.tile]
            if product.rows != (0, len(weight)):
                weight = weight[slice(*product.rows)]
            part = _multiply(sized, take(x, product.reads), weight, row, product.groups)
            total = part if total is None else total + part
            row = None
        assert total is not None
        runs.append(total)
    return runs[0] if len(runs) == 1 else torch.cat(runs, 1)


def _multiply(
    sized: SizedLayer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    layer = sized.layer
    if isinstance(layer, Conv):
        padding = layer.pads[0] if layer.pads[0] == layer.pads[1] else 0
        return nnf.conv2d(x, weight, bias, layer.stride, padding, groups=groups)
    flat = x.flatten(1)
    if groups == 1:
        return nnf.linear(flat, weight, bias)
    grouped = flat.view(len(flat), groups, -1).transpose(0, 1)
    result = torch.bmm(grouped, weight.view(groups, -1, weight.shape[1]).transpose(1, 2))
    joined = result.transpose(0, 1).reshape(len(flat), -1)
    return joined if bias is None else joined + bias


def take(x: Tensor, channels: Ranges) -> Tensor:
    """Some channels of (n, channels, ...), without a copy where they are one run."""
    if channels == ((0, x.shape[1]),):
        return x
    pieces = [x[:, start:stop] for start, stop in channels]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


# -- local response norm --------------------------------------------------------------------------

_Piece = tuple[
    int, int, int, int
]  # input start, input stop, output start, first input channel used


@lru_cache(maxsize=4096)
def _norm_pieces(sized: SizedLayer, out: Ranges, reads: Ranges) -> tuple[_Piece, ...]:
    """Runs of output channels inside one column, each with the run of input it may look at."""
    layer = sized.layer
    assert isinstance(layer, ResponseNorm)
    width = sized.in_channels // layer.columns
    pieces = []
    for column in range(layer.columns):
        for run in intersect(out, ((column * width, (column + 1) * width),)):
            seen = sized.reads((run,))
            ((start, stop),) = local(seen, reads)
            ((first, last),) = local((run,), out)
            pieces.append((start, stop, first, last - first, run[0] - seen[0][0]))
    return tuple(pieces)  # type: ignore[arg-type]


def response_norm(x: Tensor, layer: ResponseNorm, shard: Shard) -> Tensor:
    """Local response norm over channels."""
    pieces = _norm_pieces(shard.sized, shard.out, shard.reads)
    return _ResponseNorm.apply(x, layer, pieces)  # type: ignore[no-any-return,no-untyped-call]


class _ResponseNorm(torch.autograd.Function):
    """y = x s^-beta, s = k + alpha / window · (sum of x² over the window of channels).

    One function in place of torch's 5-D pooling: the window sum is shifted adds, and for the
    paper's beta = 3/4 the power is two square roots.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ResponseNorm, pieces: tuple[Any, ...]) -> Tensor:
        channels = sum(piece[3] for piece in pieces)
        y = x.new_empty(x.shape[0], channels, *x.shape[2:])
        bases = []
        for start, stop, first, count, offset in pieces:
            inside = x[:, start:stop]
            base = _window_sum(inside * inside, layer.window // 2, offset, count)
            base.mul_(layer.alpha / layer.window).add_(layer.k)
            torch.mul(
                inside[:, offset : offset + count],
                _power(base, layer.beta),
                out=y[:, first : first + count],
            )
            bases.append(base)
        ctx.save_for_backward(x, *bases)
        ctx.layer, ctx.pieces = layer, pieces
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        x, *bases = ctx.saved_tensors
        layer = ctx.layer
        gx = torch.zeros_like(x) if len(ctx.pieces) > 1 or ctx.pieces[0][4] else torch.empty_like(x)
        if not (len(ctx.pieces) > 1 or ctx.pieces[0][4]):
            gx[:, ctx.pieces[0][0] + ctx.pieces[0][3] :].zero_()
        factor = 2 * layer.alpha * layer.beta / layer.window
        for (start, stop, first, count, offset), base in zip(ctx.pieces, bases, strict=True):
            inside, mine = x[:, start:stop], g[:, first : first + count]
            direct = mine * _power(base, layer.beta)
            crossed = (direct * inside[:, offset : offset + count]).div_(base)
            half = layer.window // 2
            spread = _window_sum(crossed, half, -offset, stop - start)
            target = gx[:, start:stop]
            if len(ctx.pieces) > 1:
                target.addcmul_(spread, inside, value=-factor)
                target[:, offset : offset + count].add_(direct)
            else:
                torch.mul(spread, inside, out=target)
                target.mul_(-factor)
                target[:, offset : offset + count].add_(direct)
        return gx, None, None


def _window_sum(x: Tensor, half: int, first: int, count: int) -> Tensor:
    """(n, count, ...): element i is the sum of channels first+i-half .. first+i+half of x."""
    total = x.new_zeros(x.shape[0], count, *x.shape[2:])
    for shift in range(-half, half + 1):
        low = max(0, -(first + shift))
        high = min(count, x.shape[1] - first - shift)
        if low < high:
            total[:, low:high] += x[:, first + shift + low : first + shift + high]
    return total


def _power(base: Tensor, beta: float) -> Tensor:
    if beta == 0.75:
        root = base.rsqrt()
        return root.mul_(root.sqrt())
    return base.pow(-beta)


# -- dropout --------------------------------------------------------------------------------------


def dropout_mask(sized: SizedLayer, out: Ranges, draw: Draw, like: Tensor) -> Tensor:
    """1 with probability 1 - p, else 0; shape and dtype of ``like`` (n, channels in out, ...).

    A hash of (seed, layer, step, sample, value), so that any part of it can be drawn alone. The
    mixing function is ``lowbias32`` (Wellons, "Prospecting for hash functions", 2018).
    """
    layer = sized.layer
    assert isinstance(layer, Dropout)
    device = like.device
    rows = _mix(draw.samples.to(device) * 2 + 1 ^ seed_of(draw.seed, draw.step, sized.name))
    inner = sized.out_values
    columns = torch.cat([torch.arange(a * inner, b * inner, device=device) for a, b in out])
    mixed = _mix(rows[:, None] ^ (columns * 0x9E3779B9 & _MASK32)[None])
    return (mixed >= int(layer.p * 2**32)).to(like.dtype).view_as(like)


def _mix(x: Tensor) -> Tensor:
    """32-bit values in int64 tensors, well mixed."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK32
    return x ^ (x >> 16)


# -- initial weights ------------------------------------------------------------------------------


def initial_weight(sized: SizedLayer, seed: int) -> Tensor:
    """The whole weight of a layer, float32 on the CPU, drawn from (seed, layer name)."""
    generator = torch.Generator().manual_seed(seed_of(seed, "weight", sized.name))
    if not is_of_user(type(sized.layer)):
        return sized.layer.initial_weight(sized.weight_shape, generator)
    try:
        weight = sized.layer.initial_weight(sized.weight_shape, generator)
    except Exception as error:
        raise told(error, f"layer {sized.name}: its initial_weight fails") from error
    what = f"layer {sized.name}: its initial_weight gives"
    _check_result(weight, sized.weight_shape, torch.float32, what)
    return weight


def normal(shape: Shape, std: float, generator: Generator) -> Tensor:
    """Float32 values of N(0, std)."""
    return torch.empty(shape).normal_(0, std, generator=generator)
