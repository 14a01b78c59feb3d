"""Each optimizer's quick update against torch's own, or the formula as a paper has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.models import Model
from orchestrator.models.model import Recipe
from orchestrator.optimizers import OPTIMIZERS, AdamW, Lars, Optimizer, Sgd, Sgd2012
from tests.program.small import LINEAR

STEPS = 10
SHAPES = [(7, 5), (5,), (3, 2, 2), (1,)]
DECAYS = [True, False, True, False]
RATES = [0.1] * 5 + [0.02] * 5  # it changes on the way
Trained = list[Tensor]


def start() -> Trained:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def gradients() -> list[Trained]:
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
        for _ in range(STEPS)
    ]


def quick(optimizer: Optimizer) -> Trained:
    """By our update, on state of ours."""
    weights = start()
    state = {
        tensor.name: [
            torch.zeros(() if tensor.scalar else w.shape, dtype=torch.float32)
            if tensor.scalar
            else torch.zeros_like(w)
            for w in weights
        ]
        for tensor in optimizer.state
    }
    update = optimizer.update(weights, state, DECAYS, RATES[0])
    for step, (given, lr) in enumerate(zip(gradients(), RATES, strict=True)):
        before = [g.clone() for g in given]
        update.step(given, lr, first=not step)
        assert all(map(torch.equal, given, before)), "gradients stay as they are"
    return weights


def reference(optimizer: Optimizer) -> Trained:
    """As one device has it."""
    weights = start()
    update = optimizer.reference(weights, DECAYS)
    for given, lr in zip(gradients(), RATES, strict=True):
        update.step(dict(enumerate(given)), lr)
    return weights


def by_torch(make: Callable[[list[dict[str, object]]], torch.optim.Optimizer]) -> Trained:
    """torch's own optimizer, as a user writes it: weight decay 0.1, none for biases."""
    weights = [w.requires_grad_() for w in start()]
    optimizer = make(
        [
            {"params": [weights[0], weights[2]], "weight_decay": 0.1},
            {"params": [weights[1], weights[3]], "weight_decay": 0.0},
        ]
    )
    for given, lr in zip(gradients(), RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for weight, gradient in zip(weights, given, strict=True):
            weight.grad = gradient
        optimizer.step()
    return [w.detach() for w in weights]


def by_krizhevsky() -> Trained:
    weights, velocities = start(), [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    for given, lr in zip(gradients(), RATES, strict=True):
        for n, gradient in enumerate(given):
            decay = 0.1 * lr * weights[n] if DECAYS[n] else 0.0
            velocities[n] = 0.8 * velocities[n] - decay - lr * gradient
            weights[n] = weights[n] + velocities[n]
    return weights


def by_you() -> Trained:
    """You, Gitman, Ginsburg 2017, algorithm 1; biases by momentum alone."""
    weights, velocities = start(), [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    for given, lr in zip(gradients(), RATES, strict=True):
        for n, g in enumerate(given):
            w, rate, decay = weights[n], 1.0, 0.0
            if DECAYS[n]:
                decay = 0.1
                rate = 0.02 * float(w.norm()) / (float(g.norm()) + decay * float(w.norm()))
            velocities[n] = 0.8 * velocities[n] + lr * rate * (g + decay * w)
            weights[n] = w - velocities[n]
    return weights


CASES: dict[str, tuple[Optimizer, Callable[[], Trained]]] = {
    "sgd2012": (Sgd2012(momentum=0.8, weight_decay=0.1), by_krizhevsky),
    "sgd": (
        Sgd(momentum=0.8, weight_decay=0.1),
        lambda: by_torch(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8)),
    ),
    "sgd without momentum": (
        Sgd(momentum=0, weight_decay=0.1),
        lambda: by_torch(lambda groups: torch.optim.SGD(groups, lr=0.1)),
    ),
    "nesterov": (
        Sgd(momentum=0.8, weight_decay=0.1, nesterov=True),
        lambda: by_torch(
            lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
        ),
    ),
    "dampened": (
        Sgd(momentum=0.8, weight_decay=0.1, dampening=0.3),
        lambda: by_torch(
            lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, dampening=0.3)
        ),
    ),
    "adamw": (
        AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        lambda: by_torch(
            lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-6)
        ),
    ),
    "lars": (Lars(momentum=0.8, weight_decay=0.1, trust=0.02), by_you),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ours", [quick, reference])
def test_an_update_is_the_one_that_it_is_named_after(
    name: str, ours: Callable[[Optimizer], Trained]
) -> None:
    optimizer, theirs = CASES[name]
    for weight, expected, begun in zip(ours(optimizer), theirs(), start(), strict=True):
        change = (expected - begun).abs().max()
        assert float((weight - expected).abs().max() / change) < 1e-12


def test_every_optimizer_has_its_case() -> None:
    assert {optimizer.name for optimizer, _ in CASES.values()} == set(OPTIMIZERS)


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_a_rate_that_falls_to_nothing_leaves_the_velocity(lr: float) -> None:
    """The 2012 velocity holds the rates of the steps that made it, so it goes on without one."""
    weight, momentum = torch.ones(2).double(), torch.zeros(2).double()
    update = Sgd2012(momentum=0.5).update([weight], {"momentum": [momentum]}, [True], 0.1)
    update.step([torch.ones(2).double()], 0.1, first=True)
    moved = float(weight[0])
    update.step([torch.ones(2).double()], lr, first=False)
    coasted = 0.5 * (moved - 1)
    assert (float(weight[0]) == pytest.approx(moved + coasted)) == (lr == 0)


@pytest.mark.parametrize("which", ["weight", "gradient"])
def test_lars_without_a_norm_moves_as_momentum_does(which: str) -> None:
    weight, gradient = torch.ones(2), torch.ones(2)
    (weight if which == "weight" else gradient).zero_()
    before = weight.clone()
    update = Lars(weight_decay=0.5).update([weight], {"momentum": [torch.zeros(2)]}, [True], 0.1)
    update.step([gradient], 0.1, first=True)
    torch.testing.assert_close(weight, before - 0.1 * (gradient + 0.5 * before))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AdamW(betas=(0.9, 1.0)), r"betas is \(0.9, 1.0\); allowed: a list of 2 numbers"),
        (lambda: Sgd(momentum=-0.1), "momentum is -0.1; allowed: a number of 0 or more and below"),
        (lambda: Lars(trust=0.0), "trust is 0.0; allowed: a number above 0"),
        (lambda: Sgd(nesterov=1), "nesterov is 1; allowed: true or false"),  # type: ignore[arg-type]
        (lambda: Sgd(nesterov=True, momentum=0), "nesterov with momentum 0 and dampening 0"),
        (lambda: Recipe(optimizer="adamw"), "optimizer is a str; allowed: Sgd2012, Sgd"),  # type: ignore[arg-type]
    ],
)
def test_what_an_option_may_not_be(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert caught.value.remedy


def test_a_model_of_ones_own_may_name_an_optimizer() -> None:
    recipe = Recipe(lr=0.001, optimizer=AdamW(weight_decay=0.1))
    assert Model("own", LINEAR.input_shape, LINEAR.declared, recipe).recipe.updates == AdamW(
        weight_decay=0.1
    )
    assert Recipe(momentum=0.5).updates == Sgd2012(momentum=0.5)
