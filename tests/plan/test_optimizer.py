"""What a plan may say of its optimizer, and what it reads when it says something else."""

from __future__ import annotations

import json
import re

import pytest

from orchestrator.errors import InputError
from orchestrator.models import Model
from orchestrator.models.model import Recipe
from orchestrator.optimizers import OPTIMIZERS, AdamW, Lars, Optimizer, Sgd, Sgd2012
from orchestrator.plan import Plan
from orchestrator.plan.schema import json_schema
from orchestrator.program.resolve import recipe_of
from tests.program.small import LINEAR, small_plan


def plan(training: str) -> Plan:
    return small_plan(
        "layers: all, ranks: [0], split: none", more=f"training: {{{training}}}\n"
    )  # fmt: skip


RECIPE = Recipe(lr=0.3, momentum=0.7, weight_decay=0.2)
OWN = Model("own", LINEAR.input_shape, LINEAR.declared, RECIPE)
ADAM = Model("adam", LINEAR.input_shape, LINEAR.declared, Recipe(optimizer=AdamW(betas=(0.8, 0.9))))


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [
        (OWN, "", Sgd2012(0.7, 0.2)),
        (OWN, "momentum: 0.5", Sgd2012(0.5, 0.2)),
        (OWN, "optimizer: sgd", Sgd(0.7, 0.2)),
        (OWN, "optimizer: {name: sgd, nesterov: true}, momentum: 0.5", Sgd(0.5, 0.2, 0, True)),
        (OWN, "optimizer: {name: lars, weight_decay: 0, trust: 1}", Lars(0.7, 0, 1)),
        (OWN, "optimizer: {name: sgd2012, momentum: 0}", Sgd2012(0, 0.2)),
        # decoupled decay is another number than the recipe's
        (OWN, "optimizer: adamw", AdamW()),
        (OWN, "optimizer: adamw, weight_decay: 0.3", AdamW(weight_decay=0.3)),
        (OWN, "optimizer: {name: adamw, betas: [0, 0.5]}", AdamW((0, 0.5))),
        (ADAM, "", AdamW((0.8, 0.9))),
        (ADAM, "optimizer: {name: adamw, eps: 1.0e-6}", AdamW((0.8, 0.9), 1e-6)),
        (ADAM, "weight_decay: 0.3", AdamW((0.8, 0.9), weight_decay=0.3)),
        (ADAM, "optimizer: sgd2012", Sgd2012()),
    ],
)
def test_a_plan_changes_what_it_names(model: Model, training: str, expected: Optimizer) -> None:
    read = plan(training)
    recipe = recipe_of(read, model)
    assert recipe.updates == expected
    assert (recipe.lr, recipe.seed) == (model.recipe.lr, 0)
    assert small_plan_again(read) == read


def small_plan_again(read: Plan) -> Plan:
    from orchestrator.plan import read_plan

    return read_plan(read.to_yaml())


@pytest.mark.parametrize(
    ("training", "place", "says", "remedy"),
    [
        ("optimizer: adam", "optimizer", "found 'adam'; allowed: sgd2012, sgd, adamw or", "adamw?"),
        ("optimizer: {name: lasr}", "optimizer.name", "found 'lasr'; allowed: sgd20", "mean lars?"),
        ("optimizer: {betas: [0, 0]}", "optimizer.name", "missing; needed: one of", "name: adamw"),
        ("optimizer: 3", "optimizer", "found 3; allowed: sgd2012", "{name: adamw}"),
        ("optimizer: [adamw]", "optimizer", "found a list of 1", "{name: adamw}"),
        (
            "optimizer: {name: adamw, beta: 0.9}", "optimizer.beta",
            "adamw has no option 'beta'; allowed: betas, eps or weight_decay", "mean betas?",
        ),
        (
            "optimizer: {name: adamw, momentum: 0.9}", "optimizer.momentum",
            "adamw has no option 'momentum'", "an option of sgd2012, sgd or lars",
        ),
        ("optimizer: {name: sgd, lr: 1}", "optimizer.lr", "has no option 'lr'", "training: {lr: "),
        (
            "optimizer: {name: adamw, betas: 0.9}", "optimizer.betas",
            "found 0.9; allowed: a list of 2 numbers, each of 0 or more and below 1",
            "betas: [0.9, 0.999]",
        ),
        ("optimizer: {name: adamw, eps: true}", "optimizer.eps", "found true", "eps: 1e-08"),
        ("optimizer: {name: adamw, eps: .nan}", "optimizer.eps", "found nan", "eps: 1e-08"),
        ("optimizer: {name: sgd, nesterov: 1}", "optimizer.nesterov", "true or false", "nesterov:"),
        ("optimizer: {name: lars, trust: 0}", "optimizer.trust", "a number above 0", "trust: 0.00"),
        (
            "optimizer: adamw, momentum: 0.9", "momentum",
            "found momentum beside optimizer adamw, which has none", "remove momentum",
        ),
        (
            "optimizer: {name: sgd, momentum: 0.9}, momentum: 0.8", "momentum",
            "found momentum here and under optimizer", "keep the optimizer's",
        ),
        (
            "optimizer: {name: sgd, nesterov: true, dampening: 0.5}", "optimizer",
            "nesterov with momentum 0.7 and dampening 0.5", "dampening: 0",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(training: str, place: str, says: str, remedy: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        recipe_of(plan(training), OWN)
    assert caught.value.location.endswith(f", training.{place}")
    assert remedy in caught.value.remedy


def test_a_momentum_for_a_recipe_that_has_none() -> None:
    with pytest.raises(InputError, match="is of adamw, which has none; allowed: betas") as caught:
        recipe_of(plan("momentum: 0.5"), ADAM)
    assert "training.momentum" in caught.value.location


def test_the_schema_names_every_option() -> None:
    training = json_schema()["$defs"]["Training"]["properties"]["optimizer"]
    text = json.dumps(training)
    for name, kind in OPTIMIZERS.items():
        assert f'"const": "{name}"' in text
        for option in kind.options():
            assert f'"{option}": ' in text
