"""A step is refused for its number of ops only if it has more: the estimate never exceeds it."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError
from orchestrator.models import Linear, Model, ReLU, build_model
from orchestrator.plan import Plan, load_plan, shipped_names
from orchestrator.program import compile as compiling
from orchestrator.program import compile_plan
from tests.program.small import LINEAR, small_plan
from tests.program.test_golden import PLANS

LENET_ENTRIES = [pytest.param(*case, id=name) for name, case in PLANS.items()]


def check(plan: Plan, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_OPS", len(compile_plan(plan, model).columns))
    compile_plan(plan, model)


@pytest.mark.parametrize(("entries", "batch", "more"), LENET_ENTRIES)
def test_small_plans_may_have_as_many_as_they_have(
    entries: tuple[str, ...], batch: int, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("lenet5", {"image_size": 16, "width": 0.5})
    check(small_plan(*entries, batch=batch, more=more), model, monkeypatch)


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_shipped_plans_may_have_as_many_as_they_have(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_plan(name)
    assert plan.model.name is not None
    check(plan, build_model(plan.model.name, {}), monkeypatch)


def test_entries_that_are_one_segment_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [f"layers: {name}, ranks: [0], split: none" for name in ("a", "relu", "b", "c")]
    check(small_plan(*entries, batch=300, more="n_microbatches: 300"), LINEAR, monkeypatch)


def test_layers_without_anything_trained_have_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [ReLU(name="r"), ReLU(name="s"), Linear(name="a", features=4)]
    entries = [f"layers: {layer.name}, ranks: [{i}], split: none" for i, layer in enumerate(chain)]
    plan = small_plan(*entries, batch=8, more="n_microbatches: 4")
    check(plan, Model("prefix", (6,), chain), monkeypatch)


def test_what_has_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_OPS", 100)
    plan = small_plan("layers: all, ranks: [0], split: none", batch=300, more="n_microbatches: 300")
    with pytest.raises(InputError, match="at least 300 ops.*allowed: 100"):
        compile_plan(plan, LINEAR)
