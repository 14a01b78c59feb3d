"""Kernels of transformers' layers against counts of torch's own: operations, bytes of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.models import Attention, Embedding, PositionEmbedding, SizedLayer
from orchestrator.models.attention import _turned, _turning, _turns
from orchestrator.models.layer_costs import Kernel
from orchestrator.models.ranges import Ranges
from orchestrator.models.sized import LayerPart
from tests.models.kinds import sequence, text

EXAMPLES, TOKENS, DIM = 3, 10, 4
SOFTMAX = 5


def attention(
    heads: int = 4,
    kv_heads: int = 4,
    *,
    tokens: Ranges = ((0, TOKENS),),
    first: int = 0,
    **options: Any,
) -> LayerPart:
    """Some tokens, and the heads from the first on."""
    layer = Attention(name="a", inputs=tuple("qkv"), heads=heads, kv_heads=kv_heads, **options)
    keys = sequence(TOKENS, kv_heads * DIM)
    sized = SizedLayer.of(layer, sequence(TOKENS, heads * DIM), keys, keys)
    out = (tokens, ((first * DIM, heads * DIM),))
    return sized.part(out, sized.reads(out))


def inputs(part: LayerPart) -> list[Tensor]:
    return [torch.randn(EXAMPLES, *shape).requires_grad_() for shape in part.input_shapes]


def products(part: LayerPart) -> tuple[int, int]:
    """FLOP of the matrix products of all scores, forward and backward, as torch counts them."""
    layer, x = part.sized.layer, inputs(part)
    with FlopCounterMode(display=False) as forward:
        y = layer.whole(part.sized, x, {}, None)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def fused(kernels: Sequence[Kernel]) -> Kernel:
    return max(kernels, key=lambda kernel: kernel.flops)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_products_of_attention_are_those_that_torch_counts(kv_heads: int) -> None:
    """The fused backward computes the scores once more, where torch's counted one keeps them."""
    part = attention(kv_heads=kv_heads, causal=False)
    forward, backward = products(part)
    softmax = SOFTMAX * EXAMPLES * 4 * TOKENS * TOKENS
    (ours,) = part.kernels(EXAMPLES, "forward", 4)
    assert ours.flops == forward + softmax
    ours = fused(part.kernels(EXAMPLES, "backward", 4))
    assert ours.flops == backward + forward // 2 + softmax
    assert part.kernels(EXAMPLES, "backward_weight", 4) == ()
    assert part.kernels(EXAMPLES, "backward_input", 4) == part.kernels(EXAMPLES, "backward", 4)


def test_causal_attention_leaves_out_what_comes_later() -> None:
    seen = int(torch.ones(TOKENS, TOKENS).tril().sum())
    each = EXAMPLES * 4 * (2 * 2 * DIM + SOFTMAX)
    (kernel,) = attention().kernels(EXAMPLES, "forward", 4)
    assert kernel.flops == each * seen
    early, late = attention(tokens=((0, 6),)), attention(tokens=((6, TOKENS),))
    (kernel,) = early.kernels(EXAMPLES, "forward", 4)
    assert kernel.flops == each * int(torch.ones(6, 6).tril().sum())
    (kernel,) = late.kernels(EXAMPLES, "forward", 4)  # with a mask, of every score
    assert kernel.flops == each * 4 * TOKENS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_moves_the_tensors_of_torchs_fused_functions(dtype: torch.dtype) -> None:
    part = attention()
    q, k, v = (x.detach().to(dtype).unflatten(2, (-1, DIM)).transpose(1, 2) for x in inputs(part))
    ops = torch.ops.aten
    y, logs = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    forward = [q, k, v, y, logs]
    gy = torch.randn_like(y)
    gradients = ops._scaled_dot_product_flash_attention_for_cpu_backward(
        gy, q, k, v, y, logs, 0.0, True
    )
    (kernel,) = part.kernels(EXAMPLES, "forward", dtype.itemsize)
    assert kernel.bytes == sum(x.nbytes for x in forward)
    dots, kernel = part.kernels(EXAMPLES, "backward", dtype.itemsize)
    assert dots.bytes == y.nbytes + gy.nbytes + logs.nbytes  # as many sums as logarithms
    moved = [q, k, v, gy, logs, logs, *gradients]
    assert kernel.bytes == sum(x.nbytes for x in moved)


class Counted(TorchDispatchMode):
    """Bytes of the tensors that each of torch's kernels reads and writes, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        y = function(*args, **(kwargs or {}))
        if not function.is_view and isinstance(y, Tensor):
            flat = torch.utils._pytree.tree_leaves(args)
            read = [x for x in flat if isinstance(x, Tensor)]
            self.bytes.append(sum(x.numel() * x.element_size() for x in [*read, y]))
        return y


@pytest.mark.parametrize("heads", [1, 4])
def test_turning_moves_what_torchs_kernels_move(heads: int) -> None:
    x = torch.randn(EXAMPLES, heads, TOKENS, DIM).requires_grad_()
    cos, sin = _turns(TOKENS, DIM, 100.0, x)
    with Counted() as forward:
        y = _turned(x, cos, sin)
    gy = torch.randn_like(y)
    with Counted() as backward:
        torch.autograd.grad(y, x, gy)
    for counted, way in ((forward, True), (backward, False)):
        ours = _turning(x.numel(), TOKENS * DIM // 2, 4, forward=way)
        assert sorted(kernel.bytes for kernel in ours) == sorted(counted.bytes)


def test_rotary_turns_queries_and_keys() -> None:
    part, plain = attention(rotary=100.0, kv_heads=2), attention(kv_heads=2)
    q, k, angles = EXAMPLES * TOKENS * 4 * DIM, EXAMPLES * TOKENS * 2 * DIM, TOKENS * DIM // 2
    for direction, way in (("forward", True), ("backward", False)):
        turned = [kernel for x in (q, k) for kernel in _turning(x, angles, 4, forward=way)]
        ours = part.kernels(EXAMPLES, direction, 4)  # type: ignore[arg-type]
        rest = plain.kernels(EXAMPLES, direction, 4)  # type: ignore[arg-type]
        assert sorted(ours) == sorted([*turned, *rest])


def test_keys_that_heads_share_unevenly_are_copied() -> None:
    """Heads 1, 2 and 3 of four on two heads of keys: one of the first, two of the second."""
    part = attention(kv_heads=2, first=1)
    *copies, kernel = part.kernels(EXAMPLES, "forward", 4)
    wide, narrow = EXAMPLES * TOKENS * 3 * DIM * 4, EXAMPLES * TOKENS * 2 * DIM * 4
    assert [copy.bytes for copy in copies] == [wide + narrow] * 2
    assert kernel.bytes == 4 * wide + EXAMPLES * 3 * TOKENS * 4


VOCABULARY, FEATURES = 50, 6


def test_an_embedding_reads_the_rows_of_its_tokens_and_writes_a_dense_gradient() -> None:
    sized = SizedLayer.of(Embedding(name="e", vocabulary=VOCABULARY, features=FEATURES), text(5))
    out = (((0, 5),), ((0, 4),))  # four channels of six
    part = sized.part(out, sized.reads(out))
    numbers = torch.randint(VOCABULARY, (EXAMPLES, 5))
    table = torch.randn(VOCABULARY, 4).requires_grad_()
    y = part.compute([numbers], [table], None)
    read = sum(table[n].nbytes for n in numbers.flatten())
    assert part.kernels(EXAMPLES, "forward", 4) == (Kernel(0, numbers.nbytes + read + y.nbytes),)
    gy = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, table, gy)
    assert not gradient.is_sparse
    zeros = Kernel(0, gradient.nbytes)
    added = Kernel(gy.numel(), numbers.nbytes + gy.nbytes + 2 * read)
    assert part.kernels(EXAMPLES, "backward", 4) == (zeros, added)
    assert part.kernels(EXAMPLES, "backward_weight", 4) == (zeros, added)
    assert part.kernels(EXAMPLES, "backward_input", 4) == ()


def test_a_position_embedding_moves_what_torchs_kernels_move() -> None:
    sized = SizedLayer.of(PositionEmbedding(name="p"), sequence(5, FEATURES))
    part = sized.part(sized.output.whole, sized.reads(sized.output.whole))
    x = torch.randn(EXAMPLES, 5, FEATURES).requires_grad_()
    w = torch.randn(5, FEATURES).requires_grad_()
    with Counted() as forward:
        y = part.compute([x], [w], None)
    gy = torch.randn_like(y)
    with Counted() as backward:
        torch.autograd.grad(y, (x, w), gy)
    assert [k.bytes for k in part.kernels(EXAMPLES, "forward", 4)] == forward.bytes
    assert [k.bytes for k in part.kernels(EXAMPLES, "backward", 4)] == backward.bytes
