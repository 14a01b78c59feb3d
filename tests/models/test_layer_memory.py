"""What a kind says it needs for a moment, forward and backward, against torch's allocator."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.memory_meter import started
from orchestrator.execute.memory_meter import allocations
from orchestrator.models import (
    GELU,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Embedding,
    Layer,
    LayerNorm,
    LayerPart,
    Linear,
    MaxPool,
    Multiply,
    PositionEmbedding,
    ReLU,
    ResponseNorm,
    RMSNorm,
    SizedLayer,
    SpatialNorm,
    Value,
)
from orchestrator.models.batch_norm import BatchApply, BatchMoments
from orchestrator.models.box import Box, shape_of
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.layer_norm import AppliedNorm, ChannelMoments
from orchestrator.models.randomness import Draw
from tests.models.kinds import image, sequence, text, vector

EXAMPLES = 16
FLOAT32 = 4
SLACK = 40_000  # bytes of the smallest tensors: offsets, scalars, means
BEHIND, BACKWARD = "behind the layer", "backward of it"
IMAGE, SEQUENCE = image(32, 32, 32), sequence(64, 128)
QKV = ("q", "k", "v")
ALL, LOWER = ((0, 32),), ((16, 32),)
Case = tuple[Layer, tuple[Value, ...], Box | None]


def case(layer: Layer, *inputs: Value, out: Box | None = None) -> Case:
    return layer, inputs, out


def conv(
    name: str, channels: int, kernel: int, *, out: Box | None = None, **options: object
) -> Case:
    layer = Conv(name=name, channels=channels, kernel=kernel, **options)  # type: ignore[arg-type]
    return case(layer, IMAGE, out=out)


def attention(name: str, heads: int, out: Box | None = None, **options: object) -> Case:
    layer = Attention(name=name, inputs=QKV, heads=heads, **options)  # type: ignore[arg-type]
    keys = sequence(64, layer.key_heads * 32)
    return case(layer, sequence(64, heads * 32), keys, keys, out=out)


MOMENTS = Value((32, 6), ("channel", "moment"))
CASES = [
    case(ReLU(name="relu"), IMAGE),
    case(GELU(name="gelu"), SEQUENCE),
    conv("conv", 32, 3, padding=1),
    conv("conv_point", 64, 1),
    conv("conv_point_stride", 64, 1, stride=2),
    conv("conv_stride", 48, 3, stride=2, padding=1),
    conv("conv_uneven", 32, 5, stride=2, padding=(0, 3)),
    conv("conv_few", 6, 5, padding=2),
    conv("conv_height", 32, 3, padding=1, out=(ALL, LOWER, ALL)),
    conv("depthwise", 32, 3, padding=1, groups=32),
    conv("depthwise_wide", 32, 5, padding=2, groups=32),
    conv("grouped", 64, 3, padding=1, groups=2),
    conv("columns", 32, 3, padding=1, column_reads=((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))),
    conv("columns_all", 32, 3, padding=1, column_reads=((0, 1), (1, 0))),
    case(Conv(name="conv_image", channels=64, kernel=7, padding=3), image(3, 64, 64)),
    case(MaxPool(name="max_pool", kernel=3, stride=2, padding=1), IMAGE),
    case(MaxPool(name="max_height", kernel=3, stride=1, padding=1), IMAGE, out=(ALL, LOWER, ALL)),
    case(
        AveragePool(name="average_height", kernel=3, stride=1, padding=1), IMAGE,
        out=(ALL, LOWER, ALL),
    ),
    case(ResponseNorm(name="response"), IMAGE),
    case(SpatialNorm(name="spatial"), IMAGE),
    case(Linear(name="linear", features=100), image(32, 8, 8)),
    case(Linear(name="linear_groups", features=128, groups=2), SEQUENCE),
    case(Linear(name="linear_groups_bare", features=128, groups=2, bias=None), SEQUENCE),
    case(Add(name="add_three", inputs=QKV), IMAGE, IMAGE, IMAGE),
    case(Multiply(name="gate", inputs=("a", "b")), IMAGE, vector(32)),
    case(Concat(name="concat", inputs=("a", "b")), IMAGE, IMAGE),
    case(LayerNorm(name="layer_norm"), SEQUENCE),
    case(RMSNorm(name="rms_norm"), SEQUENCE),
    case(Embedding(name="embedding", vocabulary=500, features=128), text(64)),
    case(PositionEmbedding(name="position"), SEQUENCE),
    case(Dropout(name="dropout"), IMAGE),
    case(BatchNorm(name="batch_norm"), IMAGE),
    case(BatchNorm(name="batch_norm_groups", group=4), IMAGE),
    case(BatchMoments(name="moments", inputs=("x",), group=16, parts=2), IMAGE),
    case(BatchMoments(name="moments_groups", inputs=("x",), group=4, parts=2), IMAGE),
    case(BatchApply(name="apply", inputs=("x", "m"), group=16, parts=2), IMAGE, MOMENTS),
    case(ChannelMoments(name="channel_moments", inputs=("x",), parts=2), SEQUENCE),
    case(
        AppliedNorm(name="applied_layer", inputs=("x", "m"), norm=LayerNorm(name="n"), parts=2),
        SEQUENCE, sequence(64, 6),
    ),
    case(
        AppliedNorm(name="applied_rms", inputs=("x", "m"), norm=RMSNorm(name="n"), parts=2),
        SEQUENCE, sequence(64, 6),
    ),
    attention("attention", 4),
    attention("attention_grouped", 6, kv_heads=2),
    attention("attention_uneven", 6, out=(((0, 64),), ((0, 128),)), kv_heads=2),
    attention("attention_rotary", 4, rotary=1e4),
    attention("uneven_rotary", 6, out=(((0, 64),), ((0, 128),)), kv_heads=2, rotary=1e4),
    attention("attention_llama", 8, kv_heads=2, rotary=1e4),
    attention("attention_tokens", 4, out=(((32, 64),), ((0, 128),)), rotary=1e4),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "inputs", "out"), CASES, ids=[c[0].name for c in CASES])
def test_what_a_kind_needs_for_a_moment(
    layer: Layer, inputs: tuple[Value, ...], out: Box | None
) -> None:
    """A layer between two products, so that what it reads and gives is let go as in a network."""
    read = inputs[:1] if isinstance(layer, BatchApply) else inputs
    sized = SizedLayer(layer, inputs, layer.output(*read))
    out = out or sized.output.whole
    part = sized.part(out, sized.reads(out))
    told, copies = part.memory(EXAMPLES, FLOAT32), layer.processor_copies(part, EXAMPLES)
    forward, backward, sizes = measured(part)
    before, after = sum(sizes), told.after
    expected = before + after + told.saved + told.forward_extra + copies.forward
    assert forward == pytest.approx(expected, rel=0.01, abs=SLACK)
    held = told.saved + saved_inputs(told, sizes) + told.saves_output * after
    made = 0 if told.passes_gradient else before
    made += told.weights + told.backward_extra + told.input_extra + copies.backward
    last = before + (after if told.passes_gradient else max(sizes)) + told.weights
    assert backward == pytest.approx(max(held + after + made, last), rel=0.01, abs=SLACK)


def saved_inputs(told: LayerMemory, sizes: list[int]) -> int:
    return sum(size for number, size in enumerate(sizes) if told.holds(number))


def measured(part: LayerPart) -> tuple[int, int, list[int]]:
    """Most bytes in forward and in backward, and those of the inputs with a gradient."""
    layer = part.sized.layer
    generator = torch.Generator().manual_seed(0)
    roots = []
    for number, (value, box) in enumerate(zip(part.sized.inputs, part.reads, strict=True)):
        rows = layer.input_rows(number, ((0, EXAMPLES),))
        shape = (sum(b - a for a, b in rows), *shape_of(box))
        if value.integer:
            roots.append(torch.randint(4, shape, generator=generator))
        else:
            roots.append(torch.rand(shape, generator=generator).add_(1).requires_grad_())
    tiles = [torch.randn(shape_of(tile.box), requires_grad=True) for tile in part.tiles]
    draw = Draw(0, 0, torch.arange(EXAMPLES), EXAMPLES)
    factors = [torch.ones_like(x) for x in roots]
    trained = [x for x in [*roots, *tiles] if x.requires_grad]

    def both() -> None:
        inputs = [x * f if x.requires_grad else x for x, f in zip(roots, factors, strict=True)]
        y = layer.compute(part, inputs, tiles, draw)
        del inputs
        with record_function(BEHIND):
            loss = (y * torch.ones(())).sum()
            del y
        with record_function(BACKWARD):
            torch.autograd.grad(loss, trained, materialize_grads=True)

    both()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        both()
    sizes = [x.nbytes if x.requires_grad else 0 for x in roots]
    return *most_in_turn(recorded), sizes


def most_in_turn(recorded: profile) -> tuple[int, int]:
    """The most bytes before what is behind the layer begins, and in the backward."""
    ((behind, _),), ((back, _),) = (started(recorded, name) for name in (BEHIND, BACKWARD))
    alive: dict[int, int] = {}
    forward = backward = 0
    for when, address, amount in allocations(recorded):
        if amount > 0:
            alive[address] = amount
        else:
            alive.pop(address, None)
        if when < behind:
            forward = max(forward, sum(alive.values()))
        elif when >= back:
            backward = max(backward, sum(alive.values()))
    return forward, backward
