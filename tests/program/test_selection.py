"""Which layers a text names in a model, and how layers are named by a text."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError
from orchestrator.models import Linear, Model
from orchestrator.program.selection import entry_layers, layers_text, selected
from tests.program.small import small_plan


def chain(*names: str) -> Model:
    return Model("chain", (4,), [Linear(name=name, features=4) for name in names])


BLOCKS = chain("stem", "b.0.a", "b.0.b", "b.1.a", "b.1.b", "b.10.a", "c.0", "c.1", "head")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("stem", "stem"),
        ("stem..b.0.a", "stem b.0.a"),
        ("b.1", "b.1.a b.1.b"),
        ("b.0..1", "b.0.a b.0.b b.1.a b.1.b"),
        ("b.1..10", "b.1.a b.1.b b.10.a"),
        ("b.1..c.0", "b.1.a b.1.b b.10.a c.0"),
        ("b.0.b..b.1", "b.0.b b.1.a b.1.b"),
        ("b", "b.0.a b.0.b b.1.a b.1.b b.10.a"),
        ("c.0..1", "c.0 c.1"),  # layers that are numbered, no blocks
        ("c.0", "c.0"),
        ("all", "stem b.0.a b.0.b b.1.a b.1.b b.10.a c.0 c.1 head"),
    ],
)
def test_every_form_of_a_text(text: str, names: str) -> None:
    found = [BLOCKS.layers[i].name for i in selected(BLOCKS, text, "here")]
    assert found == names.split()


def test_a_layer_may_be_called_all() -> None:
    model = chain("a", "all", "b")
    assert selected(model, "all", "here") == (1,)
    assert selected(model, "a..all", "here") == (0, 1)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("b.2", "chain has no layer 'b.2'; its layers: stem b.0.a", "did you mean b.1?"),
        ("hed", "chain has no layer 'hed'", "did you mean head?"),
        ("b.0..2", "chain has no layer 'b.2'", "did you mean b.1?"),
        ("zzzzzz", "chain has no layer 'zzzzzz'", "write one of these for zzzzzz"),
        ("loss", "chain has no layer 'loss'", ""),
        ("head..stem", "'head..stem' runs backwards: stem comes before head", "write stem..head"),
        ("b.1..0", "'b.1..0' runs backwards: b.0 comes before b.1", "write b.0..b.1"),
    ],
)
def test_what_the_model_does_not_have_is_refused(text: str, message: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        selected(BLOCKS, text, "here")
    assert caught.value.location == "here"
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("positions", "text"),
    [((0,), "stem"), ((0, 1, 2), "stem..b.0.b"), ((4, 0, 1), "[stem..b.0.a, b.1.b]")],
)
def test_layers_are_named_as_a_plan_would(positions: tuple[int, ...], text: str) -> None:
    assert layers_text(BLOCKS, positions) == text
    plan = small_plan(f"layers: {text}, ranks: [0], split: none")
    assert entry_layers(plan, BLOCKS, 0) == tuple(sorted(positions))


def test_the_layers_of_a_list_are_in_the_models_order() -> None:
    plan = small_plan("layers: [head, b.1, stem], ranks: [0], split: none")
    assert entry_layers(plan, BLOCKS, 0) == (0, 3, 4, 8)
