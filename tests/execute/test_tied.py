"""A head that borrows the embedding's table: the same training as one device, and what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.verify import verify
from orchestrator.models import (
    GELU,
    Add,
    Constant,
    Embedding,
    Layer,
    LayerNorm,
    LayerPart,
    Linear,
    Model,
    ParameterSpec,
    PositionEmbedding,
    Recipe,
    Value,
)
from orchestrator.models.randomness import Draw
from orchestrator.program import compile_plan
from orchestrator.program.ledger import edges
from orchestrator.program.placement import update_examples
from orchestrator.schedules import SCHEDULES, Action, Schedule, Timetable
from tests.program.small import small_plan, small_program

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
    "a head in turns": (
        (
            "layers: embed..norm, ranks: [0, 1], split: batch",
            "layers: up..gelu, ranks: [0, 1], split: channel, exchange: broadcast",
            "layers: down, ranks: [0, 1], split: channel",
            "layers: sum..head, ranks: [0], split: none",
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


@pytest.mark.parametrize("name", ["one rank", "two stages"])
def test_any_microbatch_may_be_the_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table lent for microbatch 0 overwrote what earlier forwards had saved."""

    def backwards(groups: int, stages: int, microbatches: int) -> Timetable:
        last_first = [*reversed(range(microbatches))]
        return [
            [Action(kind, g, m) for kind in ("F", "B") for m in last_first] for g in range(stages)
        ]

    schedule = Schedule("LastFirst", "a test, 2026", backwards)
    monkeypatch.setitem(SCHEDULES, "LastFirst", schedule)
    program = small_program(
        MODEL, *PLANS[name][0], batch=8, more="n_microbatches: 2\nschedule: LastFirst",
        dtype="float64",
    )  # fmt: skip
    verdict = verify(program, Recipe(lr=0.05), update_examples={}, steps=3)
    assert verdict.passed, verdict.problems


@dataclass(frozen=True, kw_only=True)
class Twice(Layer):
    """Adds two biases, both of them other layers'."""

    tied: tuple[str, str] = ("", "")

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape, owners = (inputs[0].channels,), zip(("one", "two"), self.tied, strict=True)
        return tuple(
            ParameterSpec(name, shape, Constant(0.0), ("channel",), tied_to=owner)
            for name, owner in owners
        )

    def compute(
        self,
        part: LayerPart,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        draw: Draw | None,
    ) -> Tensor:
        one, two = parameters
        return inputs[0] + one.square() - two


@pytest.mark.parametrize("tied", [("a.bias", "b.bias"), ("a.bias", "a.bias")])
@pytest.mark.parametrize("name", ["one rank", "two ranks", "two stages"])
def test_a_layer_may_borrow_two_parameters(tied: tuple[str, str], name: str) -> None:
    layers = [
        Linear(name="a", features=4, bias=0.5, weight_std=0.4),
        Linear(name="b", features=4, bias=0.5, weight_std=0.4),
        Twice(name="twice", tied=tied),
    ]
    entries = {
        "one rank": ["layers: all, ranks: [0], split: none"],
        "two ranks": ["layers: all, ranks: [0, 1], split: channel"],
        "two stages": [
            "layers: a, ranks: [0], split: none", "layers: b..twice, ranks: [1], split: none"
        ],
    }[name]  # fmt: skip
    program = small_program(Model("twice", (6,), layers), *entries, batch=8, dtype="float64")
    verdict = verify(program, Recipe(lr=0.05), update_examples={}, steps=3)
    assert verdict.passed, verdict.problems


def test_a_tied_layer_is_not_updated_within_a_step() -> None:
    for first in ("head", "down"):
        more = f"training: {{layer_batch: {{{first}..head: 2}}}}"
        plan = small_plan("layers: all, ranks: [0], split: none", batch=8, more=more)
        with pytest.raises(InputError, match="head.weight is tied to embed.weight, which is sent"):
            compile_plan(plan, MODEL)
        with pytest.raises(InputError, match="head.weight is tied to embed.weight, which is sent"):
            update_examples(plan, MODEL)


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
