"""Norms, embeddings and attention: numbers by formula, the field's own formulations, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import InputError
from orchestrator.models import (
    Attention,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Model,
    PositionEmbedding,
    RMSNorm,
    SizedLayer,
    Value,
)
from orchestrator.models.box import Box
from orchestrator.models.parameter import Tile
from tests.models.kinds import image, same, sequence, text, vector
from tests.program.small import small_program

QKV = ("q", "k", "v")


def computed(
    layer: Layer, *inputs: Tensor, values: tuple[Value, ...], weights: tuple[Tensor, ...] = ()
) -> Tensor:
    """The whole output, by the function that computes parts."""
    sized = SizedLayer.of(layer, *values)
    everything = sized.output.whole
    return layer.compute(sized.part(everything, sized.reads(everything)), inputs, weights, None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# -- norms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_is_torchs(bias: bool) -> None:
    x, weight, offset = noise(3, 5, 8), noise(8, seed=1), noise(8, seed=2)
    module = nn.LayerNorm(8, eps=1e-3, bias=bias).double()
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias:
            module.bias.copy_(offset)
    layer = LayerNorm(name="n", eps=1e-3, bias=bias)
    weights = (weight, offset) if bias else (weight,)
    same(computed(layer, x, values=(sequence(5, 8),), weights=weights), module(x))


def test_an_rms_norm_is_the_papers() -> None:
    x, weight = noise(3, 5, 8), noise(8, seed=1)
    expected = x / ((x**2).sum(-1, keepdim=True) / 8 + 1e-3).sqrt() * weight
    layer = RMSNorm(name="n", eps=1e-3)
    same(computed(layer, x, values=(sequence(5, 8),), weights=(weight,)), expected)


@pytest.mark.parametrize("layer", [LayerNorm(name="n"), RMSNorm(name="n")], ids=lambda x: x.kind)
@pytest.mark.parametrize("count", [96, 48])
def test_a_norm_of_bfloat16_is_rounded_at_its_end_only(layer: Layer, count: int) -> None:
    """torch's own layer norm adds gradients up in bfloat16 on a CPU: 2 to 5 % off."""
    sized = SizedLayer.of(layer, sequence(16, 96))
    out: Box = (((0, 16),), ((0, count),))
    part = sized.part(out, sized.reads(out))
    x = (noise(4, 16, 96) + 4).bfloat16()
    weights = [noise(count, seed=1).bfloat16() for _ in sized.specs]
    gradient = noise(4, 16, count, seed=2).bfloat16()

    def run(dtype: torch.dtype) -> list[Tensor]:
        wanted = [t.to(dtype).requires_grad_() for t in (x, *weights)]
        y = layer.compute(part, wanted[:1], wanted[1:], None)
        assert y.dtype == dtype
        return [y, *torch.autograd.grad(y, wanted, gradient.to(dtype))]

    for narrow, exact in zip(run(torch.bfloat16), run(torch.float64), strict=True):
        same(narrow.double(), exact, 2**-8)


def test_parameters_of_norms_start_as_the_identity_and_do_not_decay() -> None:
    specs = SizedLayer.of(LayerNorm(name="n"), sequence(5, 8)).specs
    generator = torch.Generator()
    assert [(s.name, s.shape, s.decays) for s in specs] == [
        ("weight", (8,), False),
        ("bias", (8,), False),
    ]
    starts = [s.initial.draw(s.shape, generator) for s in specs]
    assert torch.equal(starts[0], torch.ones(8))
    assert torch.equal(starts[1], torch.zeros(8))
    assert SizedLayer.of(LayerNorm(name="n", bias=False), vector(8)).parameters == 8
    assert SizedLayer.of(RMSNorm(name="n"), vector(8)).parameters == 8


def test_some_channels_of_a_norm_hold_their_parameters_and_read_all() -> None:
    sized = SizedLayer.of(LayerNorm(name="n"), sequence(5, 8))
    out = (((1, 3),), ((2, 6),))
    assert sized.reads(out) == ((((1, 3),), ((0, 8),)),)
    tiles = sized.part(out, sized.reads(out)).tiles
    assert tiles == (Tile("weight", (((2, 6),),)), Tile("bias", (((2, 6),),)))


# -- embeddings -----------------------------------------------------------------------------------


def test_an_embedding_is_cut_by_features_and_counts_its_table() -> None:
    sized = SizedLayer.of(Embedding(name="e", vocabulary=50, features=8), text(5))
    assert sized.output == sequence(5, 8)
    assert (sized.parameters, sized.macs) == (400, 0)
    out = (((1, 3),), ((2, 6),))
    part = sized.part(out, sized.reads(out))
    assert part.reads == ((((1, 3),),),)
    assert part.tiles == (Tile("weight", (((0, 50),), ((2, 6),))),)
    assert sized.specs[0].decays


def test_a_position_embedding_is_cut_by_tokens_and_channels() -> None:
    sized = SizedLayer.of(PositionEmbedding(name="p"), sequence(5, 8))
    assert (sized.parameters, sized.macs) == (40, 0)
    out = (((1, 3),), ((2, 6),))
    assert sized.part(out, sized.reads(out)).tiles == (Tile("weight", out),)


def test_a_model_of_tokens_knows_its_vocabulary() -> None:
    layers = [Embedding(name="e", vocabulary=50, features=8), Linear(name="head", features=50)]
    model = Model("m", (5,), layers)
    assert (model.vocabulary, model.classes, model.predictions) == (50, 50, 5)
    assert model.input == text(5)
    assert Model("m", (5,), [Linear(name="head", features=3)]).vocabulary == 0


# -- attention ------------------------------------------------------------------------------------


def rotate_half(x: Tensor) -> Tensor:
    """As in Llama's published code."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def llama_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, base: float
) -> Tensor:
    """Eager attention of Llama, step by step, with a causal mask that is added."""
    n, tokens, channels = q.shape
    dim = channels // heads
    q = q.view(n, tokens, heads, dim).transpose(1, 2)
    k = k.view(n, tokens, kv_heads, dim).transpose(1, 2)
    v = v.view(n, tokens, kv_heads, dim).transpose(1, 2)
    inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).double() / dim))
    freqs = (inv_freq[:, None] @ torch.arange(tokens).double()[None]).T
    emb = torch.cat((freqs, freqs), dim=-1)
    q = q * emb.cos() + rotate_half(q) * emb.sin()
    k = k * emb.cos() + rotate_half(k) * emb.sin()
    k = k[:, :, None].expand(n, kv_heads, heads // kv_heads, tokens, dim).reshape(q.shape)
    v = v[:, :, None].expand(n, kv_heads, heads // kv_heads, tokens, dim).reshape(q.shape)
    mask = torch.full((tokens, tokens), float("-inf"), dtype=q.dtype).triu(1)
    weights = torch.softmax(q @ k.transpose(2, 3) * dim**-0.5 + mask, dim=-1)
    return (weights @ v).transpose(1, 2).reshape(n, tokens, channels)


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
def test_attention_is_llamas(kv_heads: int) -> None:
    keys = sequence(7, kv_heads * 4)
    inputs = [noise(2, 7, 24), noise(2, 7, kv_heads * 4, seed=1), noise(2, 7, kv_heads * 4, seed=2)]
    for x in inputs:
        x.requires_grad_()
    layer = Attention(name="a", inputs=QKV, heads=6, kv_heads=kv_heads, rotary=500.0)
    ours = computed(layer, *inputs, values=(sequence(7, 24), keys, keys))
    q, k, v = inputs
    theirs = llama_attention(q, k, v, 6, kv_heads, 500.0)
    same(ours, theirs)
    gradient = noise(*ours.shape, seed=3)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, gradient),
        torch.autograd.grad(theirs, inputs, gradient),
        strict=True,
    ):
        same(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_torchs_multihead_attention(causal: bool) -> None:
    inputs = [noise(2, 7, 24, seed=i) for i in range(3)]
    module = nn.MultiheadAttention(24, 4, bias=False, batch_first=True).double()
    with torch.no_grad():  # projections that change nothing
        module.in_proj_weight.copy_(torch.eye(24).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(24))
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    expected, _ = module(*inputs, attn_mask=mask, need_weights=False)
    layer = Attention(name="a", inputs=QKV, heads=4, causal=causal)
    same(computed(layer, *inputs, values=(sequence(7, 24),) * 3), expected)


def test_query_heads_read_the_heads_that_they_share() -> None:
    layer = Attention(name="a", inputs=QKV, heads=8, kv_heads=2, causal=False)
    sized = SizedLayer.of(layer, sequence(6, 32), sequence(6, 8), sequence(6, 8))
    every = ((0, 6),)

    def channels(*heads: int) -> Box:
        out = (every, ((heads[0] * 4, heads[-1] * 4 + 4),))
        q, k, v = sized.reads(out)
        assert q == out
        assert k == v
        assert k[0] == every
        return k[1:]

    assert channels(0, 1, 2, 3) == (((0, 4),),)
    assert channels(4, 5) == (((4, 8),),)
    assert channels(3, 4) == (((0, 8),),)


def test_a_causal_token_reads_those_before_it() -> None:
    every = ((0, 8),)
    causal = SizedLayer.of(Attention(name="a", inputs=QKV, heads=2), *[sequence(6, 8)] * 3)
    out = (((2, 4),), every)
    assert causal.reads(out) == (out, (((0, 4),), every), (((0, 4),), every))
    both = Attention(name="a", inputs=QKV, heads=2, causal=False)
    sized = SizedLayer.of(both, *[sequence(6, 8)] * 3)
    assert sized.reads(out)[1] == (((0, 6),), every)


def test_multiply_adds_of_attention_by_formula() -> None:
    """Two products of a head's channels for each pair of a query and a key."""
    pairs_all, pairs_before = 6 * 6, 6 * 7 // 2
    for causal, pairs in ((False, pairs_all), (True, pairs_before)):
        layer = Attention(name="a", inputs=QKV, heads=4, kv_heads=2, causal=causal)
        sized = SizedLayer.of(layer, sequence(6, 12), sequence(6, 6), sequence(6, 6))
        assert sized.macs == 4 * 2 * 3 * pairs
        assert sized.parameters == 0


# -- refusals -------------------------------------------------------------------------------------


def attention(heads: int, *inputs: Value, **options: object) -> tuple[Layer, tuple[Value, ...]]:
    return Attention(name="c", inputs=QKV, heads=heads, **options), inputs  # type: ignore[arg-type]


SEQ = sequence(6, 12)
REFUSED = [
    ((LayerNorm(name="c"), (image(3, 4, 4),)), "reads vectors and sequences, not images of 3x4x4"),
    ((RMSNorm(name="c"), (text(5),)), "not token numbers of 5"),
    ((Embedding(name="c", vocabulary=9, features=4), (vector(5),)), "reads token numbers"),
    ((Embedding(name="c", vocabulary=0, features=4), (text(5),)), "at least 1, found 0 and 4"),
    ((PositionEmbedding(name="c"), (text(5),)), "reads sequences, not values of 5"),
    ((PositionEmbedding(name="c"), (image(3, 4, 4),)), "reads sequences"),
    (attention(5, SEQ, SEQ, SEQ), "12 channels of the queries do not divide into 5 heads"),
    (attention(0, SEQ, SEQ, SEQ), "do not divide into 0 heads"),
    (attention(4, SEQ, SEQ, SEQ, kv_heads=3), "4 query heads do not divide over 3 heads"),
    (attention(4, SEQ, SEQ, SEQ, kv_heads=0), "do not divide over 0 heads"),
    (attention(4, SEQ, SEQ, SEQ, kv_heads=2), "2 heads of 3 channels like those of the queries"),
    (attention(4, SEQ, sequence(5, 12), sequence(5, 12)), "sequences of 6 tokens"),
    (attention(4, SEQ, SEQ, sequence(6, 6)), "found queries, keys and values of 6x12, 6x12, 6x6"),
    (attention(4, *[vector(12)] * 3), "attention reads sequences"),
    (attention(4, SEQ, SEQ, SEQ, rotary=10_000.0), "in pairs.*found 3 channels"),
    (attention(3, SEQ, SEQ, SEQ, rotary=0.0), "positive base; found 4 channels and base 0.0"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_a_kind_cannot_read_is_refused_by_name(
    given: tuple[Layer, tuple[Value, ...]], message: str
) -> None:
    layer, inputs = given
    with pytest.raises(InputError, match=message) as caught:
        SizedLayer.of(layer, *inputs)
    assert "layer c" in str(caught.value)


def small_transformer() -> Model:
    return Model(
        "small",
        (6,),
        [
            Embedding(name="e", vocabulary=9, features=12),
            Linear(name="q", features=12),
            Linear(name="k", features=12, inputs=("e",)),
            Linear(name="v", features=12, inputs=("e",)),
            Attention(name="attend", heads=3, inputs=QKV),
            Linear(name="head", features=9),
        ],
    )


def test_a_cut_that_tears_a_head_is_refused_with_its_place_and_a_remedy() -> None:
    head = "layers: head, ranks: [0], split: none"
    with pytest.raises(InputError) as caught:
        small_program(small_transformer(), "layers: e..attend, ranks: [0, 1], split: channel", head)
    message = str(caught.value)
    assert "attend: a cut of its channels at 0:6 tears head 1" in message
    assert "3 heads of 4 channels" in message
    assert "t.yaml:6, placement[0].split" in message
    assert "remedy: split channel over a number of ranks that divides 3" in message


def test_heads_may_be_given_out_unevenly_in_shares() -> None:
    program = small_program(
        small_transformer(),
        "layers: e..attend, ranks: [0, 1], split: channel, shares: [2, 1]",
        "layers: head, ranks: [0], split: none",
    )
    boxes = {
        rank: part.out[1]
        for segment in program.segments
        for rank, share in segment.parts.items()
        for part in share.layers
        if part.sized.name == "attend"
    }
    assert boxes == {0: ((0, 8),), 1: ((8, 12),)}
