"""A head that borrows the embedding's table: the same training as one device, and what it sends."""

from __future__ import annotations

import pytest

from orchestrator.execute.verify import verify
from orchestrator.models import (
    GELU,
    Add,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Model,
    PositionEmbedding,
    Recipe,
)
from orchestrator.program.ledger import edges
from tests.program.small import small_program

VOCABULARY, FEATURES, TOKENS = 12, 8, 6


def tied_model() -> Model:
    layers: list[Layer] = [
        Embedding(name="embed", vocabulary=VOCABULARY, features=FEATURES, weight_std=0.5),
        PositionEmbedding(name="pos", weight_std=0.3),
        LayerNorm(name="norm"),
        Linear(name="up", features=16, weight_std=0.4),
        GELU(name="gelu"),
        Linear(name="down", features=FEATURES, weight_std=0.4),
        Add(name="sum", inputs=("down", "pos")),
        Linear(name="head", features=VOCABULARY, bias=None, tied="embed.weight"),
    ]
    return Model("tied", (TOKENS,), layers)


MODEL = tied_model()
FIRST = "layers: embed..gelu, ranks: [0], split: none"
SECOND = "layers: down..head, ranks: [1], split: none"
PLANS: dict[str, tuple[tuple[str, ...], str]] = {
    "one rank": (("layers: all, ranks: [0], split: none",), "n_microbatches: 2"),
    "data parallel": (("layers: all, ranks: [0, 1], split: batch",), ""),
    "zero1": (
        ("layers: all, ranks: [0, 1], split: batch",), "replicas: 2\noptimizer_sharding: zero1"
    ),
    "tokens": (("layers: all, ranks: [0, 1], split: token",), ""),
    "vocabulary and features": (("layers: all, ranks: [0, 1], split: channel",), ""),
    "two stages": ((FIRST, SECOND), "n_microbatches: 2\nschedule: 1F1B"),
    "a group borrows from a group": (
        (
            "layers: embed..gelu, ranks: [0, 1], split: batch",
            "layers: down..head, ranks: [2, 3], split: channel",
        ),
        "n_microbatches: 2\nreplicas: 2\noptimizer_sharding: zero1",
    ),
    "replicated": (
        (
            "layers: embed..norm, ranks: [0, 1], split: none",
            "layers: up..gelu, ranks: [0, 1], split: channel",
            "layers: down, ranks: [0, 1], split: input",
            "layers: sum, ranks: [0, 1], split: none",
            "layers: head, ranks: [0, 1], split: channel",
        ),
        "",
    ),
    "a V of half backwards": (
        (
            "layers: embed..pos, ranks: [0], split: none",
            "layers: norm..up, ranks: [1], split: none",
            "layers: gelu..down, ranks: [1], split: none",
            "layers: sum..head, ranks: [0], split: none",
        ),
        "n_microbatches: 2\nschedule: ZBVZeroBubble",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_every_split_trains_the_tied_network(name: str) -> None:
    entries, more = PLANS[name]
    program = small_program(MODEL, *entries, batch=8, more=more, dtype="float64")
    verdict = verify(program, Recipe(lr=0.05), update_examples={}, steps=3)
    assert verdict.passed, verdict.problems


def test_the_table_goes_to_the_head_once_a_step_and_its_gradient_back() -> None:
    """Whatever the number of microbatches."""
    for microbatches in (1, 4):
        more = f"n_microbatches: {microbatches}\nschedule: 1F1B"
        found = edges(small_program(MODEL, FIRST, SECOND, batch=8, more=more))
        table = {
            (e.from_rank, e.to_rank, e.direction): n for e, n in found.items() if e.layer == "head"
        }
        size = VOCABULARY * FEATURES * 4
        assert table == {(0, 1, "forward"): size, (1, 0, "backward"): size}


def test_a_tied_parameter_is_counted_and_held_once() -> None:
    own = sum(layer.parameters for layer in MODEL.layers if layer.name != "head")
    assert MODEL.parameters == own
    program = small_program(MODEL, "layers: all, ranks: [0], split: none")
    parts = [part for s in program.segments for part in s.parts.values()]
    assert sum(part.parameters for part in parts) == own
    assert sum(part.borrowed for part in parts) == VOCABULARY * FEATURES
