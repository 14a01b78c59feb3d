"""Every layer kind as a part of itself, on all axes: values, gradients, what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.models import (
    GELU,
    Add,
    Attention,
    AveragePool,
    Concat,
    Conv,
    Embedding,
    Flatten,
    GlobalAveragePool,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    PositionEmbedding,
    ReLU,
    ResponseNorm,
    RMSNorm,
    Sigmoid,
    SiLU,
    SpatialNorm,
    Tanh,
)
from tests.models.kinds import (
    EXAMPLES,
    Case,
    boxes,
    case,
    check,
    held,
    image,
    runs,
    sequence,
    text,
    vector,
)

QKV = ("q", "k", "v")
POINTWISE = [
    case(ReLU(name="relu"), image(4, 5, 3)),
    case(Tanh(name="tanh"), image(4, 5, 3)),
    case(Sigmoid(name="sigmoid"), vector(9)),
    case(GELU(name="gelu"), sequence(6, 8)),
    case(GELU(name="gelu_tanh", tanh=True), sequence(6, 8)),
    case(SiLU(name="silu"), sequence(6, 8)),
]
WINDOWS = [
    case(Conv(name="conv", channels=4, kernel=3), image(3, 9, 5)),
    case(Conv(name="conv_padded", channels=4, kernel=3, padding=1), image(3, 9, 5)),
    case(Conv(name="conv_stride", channels=4, kernel=3, stride=2, padding=1), image(3, 9, 6)),
    case(Conv(name="conv_even", channels=4, kernel=3, stride=2, padding=1), image(3, 10, 6)),
    case(Conv(name="conv_after", channels=4, kernel=5, stride=2, padding=(0, 3)), image(2, 11, 8)),
    case(Conv(name="conv_left", channels=2, kernel=2, stride=3), image(2, 12, 5)),
    case(Conv(name="projection", channels=4, kernel=1, stride=2, bias=None), image(3, 9, 6)),
    case(Conv(name="depthwise", channels=6, kernel=3, padding=1, groups=6), image(6, 9, 5)),
    case(Conv(name="grouped", channels=6, kernel=3, padding=1, groups=2), image(4, 9, 5)),
    case(MaxPool(name="max_pool", kernel=3, stride=2), image(3, 11, 7)),
    case(MaxPool(name="max_padded", kernel=3, stride=2, padding=1), image(3, 10, 6)),
    case(MaxPool(name="max_same", kernel=3, stride=1, padding=1), image(2, 7, 5)),
    case(AveragePool(name="average", kernel=2, stride=2), image(3, 9, 6)),
    case(AveragePool(name="average_padded", kernel=3, stride=2, padding=1), image(3, 10, 6)),
    case(SpatialNorm(name="spatial"), image(3, 9, 6)),
]
OTHERS = [
    case(GlobalAveragePool(name="global"), image(5, 4, 3)),
    case(Flatten(name="flatten"), image(3, 2, 4)),
    case(Flatten(name="flatten_tokens"), sequence(4, 3)),
    case(ResponseNorm(name="response", alpha=1.0), image(9, 4, 3)),
    case(ResponseNorm(name="columns", alpha=1.0, columns=2), image(8, 4, 3)),
    case(Linear(name="linear", features=6), image(3, 4, 2)),
    case(Linear(name="linear_tokens", features=6, bias=None), sequence(5, 4)),
    case(Linear(name="linear_groups", features=6, groups=2), sequence(5, 4)),
]
SEVERAL = [
    case(Add(name="add", inputs=("a", "b")), image(4, 5, 3), image(4, 5, 3)),
    case(Add(name="add_three", inputs=("a", "b", "c")), *[sequence(4, 6)] * 3),
    case(Multiply(name="product", inputs=("a", "b")), sequence(4, 6), sequence(4, 6)),
    case(Multiply(name="gate", inputs=("a", "b")), image(4, 5, 3), vector(4)),
    case(Multiply(name="gate_tokens", inputs=("a", "b")), sequence(4, 6), vector(6)),
    case(Concat(name="concat", inputs=QKV), image(2, 5, 3), image(3, 5, 3), image(1, 5, 3)),
    case(Concat(name="concat_tokens", inputs=("a", "b")), sequence(4, 3), sequence(4, 2)),
]
TOKENS = [
    case(LayerNorm(name="layer_norm"), sequence(5, 8)),
    case(LayerNorm(name="layer_norm_bare", eps=1e-2, bias=False), vector(8)),
    case(RMSNorm(name="rms_norm"), sequence(5, 8)),
    case(RMSNorm(name="rms_norm_vector", eps=1e-2), vector(8)),
    case(Embedding(name="embedding", vocabulary=7, features=6), text(5)),
    case(PositionEmbedding(name="position"), sequence(5, 6)),
]


def attention(name: str, heads: int, dim: int, *, tokens: int = 6, **options: object) -> Case:
    layer = Attention(name=name, inputs=QKV, heads=heads, **options)  # type: ignore[arg-type]
    keys = sequence(tokens, layer.key_heads * dim)
    return case(layer, sequence(tokens, heads * dim), keys, keys, channel=dim)


ATTENTION = [
    attention("causal", 3, 4),
    attention("bidirectional", 2, 5, causal=False),
    attention("grouped_keys", 6, 2, kv_heads=2),
    attention("one_key_head", 4, 4, kv_heads=1, causal=False),
    attention("rotary", 2, 4, rotary=10_000.0),
    attention("llama", 4, 6, kv_heads=2, rotary=100.0),
    attention("rotary_bidirectional", 4, 4, kv_heads=2, causal=False, rotary=10.0),
]
CASES = [*POINTWISE, *WINDOWS, *OTHERS, *SEVERAL, *TOKENS, *ATTENTION]


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_a_part_is_the_part_of_the_whole(case: Case, data: st.DataObject) -> None:
    ((start, stop),) = data.draw(runs(EXAMPLES, 1))
    check(case, data.draw(boxes(case)), slice(start, stop), seed=data.draw(st.integers(0, 9)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_is_a_part_of_itself(case: Case) -> None:
    value = case.sized.output
    check(case, value.whole, slice(0, EXAMPLES))
    assert case.sized.reads(value.whole) == tuple(x.whole for x in case.inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_parts_do_the_arithmetic_of_the_whole(case: Case, data: st.DataObject) -> None:
    """Cut in two along any axis, the multiply-adds of both parts are those of the whole."""
    sized = case.sized
    at = data.draw(st.integers(0, len(sized.output.axes) - 1))
    size, step = sized.output.shape[at], case.steps.get(sized.output.axes[at], 1)
    cut = step * data.draw(st.integers(1, max(1, size // step - 1)))
    total = 0
    for run in ((0, cut), (cut, size)):
        if run[0] < run[1]:
            out = list(sized.output.whole)
            out[at] = (run,)
            part = sized.part(tuple(out), sized.reads(tuple(out)))
            total += part.macs_per_example
    assert total == sized.macs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_autograd_keeps_is_told(case: Case, dtype: torch.dtype) -> None:
    """Of the whole, and of a part at each end of each axis."""
    value = case.sized.output
    parts = [value.whole]
    for at, (axis, size) in enumerate(zip(value.axes, value.shape, strict=True)):
        step = case.steps.get(axis, 1)
        cut = max(step, size // 2 // step * step)
        parts += [
            (*value.whole[:at], ((a, b),), *value.whole[at + 1 :])
            for a, b in ((0, cut), (cut, size))
        ]
    for out in parts:
        predicted, measured = held(case, out, dtype)
        assert predicted == measured, f"{out}: told {predicted} bytes, held {measured}"
