"""The one device that every plan is compared with, against the recipe written out in plain torch.

The whole network's step is compared in ``tests/models/test_alexnet_torch.py``; here are momentum
and decay over several steps, and the variable batch size of One Weird Trick (2014), section 4.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator.execute.reference import Reference
from orchestrator.execute.verify import RandomFeed
from orchestrator.models import Linear, Model, ReLU
from orchestrator.models.model import Recipe

NET = Model(
    "net",
    (6,),
    [
        Linear(name="a", features=8, weight_std=0.5, bias=0.1),
        ReLU(name="relu"),
        Linear(name="b", features=3, weight_std=0.5),
    ],
)
RECIPE = Recipe(lr=0.2, momentum=0.8, weight_decay=0.1)
BATCH, STEPS = 6, 3


def by_hand(start: dict[str, Tensor], size: int) -> tuple[dict[str, Tensor], list[float]]:
    """Layer a once a step, on the whole batch; layer b after every ``size`` examples."""
    weights = {name: w.detach().clone().requires_grad_() for name, w in start.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    feed, losses = RandomFeed(NET, BATCH), []

    def update(names: tuple[str, ...], gradients: dict[str, Tensor]) -> None:
        """v <- 0.8 v - 0.1 * 0.2 w - 0.2 g, no decay of biases; w <- w + v."""
        with torch.no_grad():
            for name in names:
                decay = 0.1 * weights[name] if name.endswith("weight") else 0.0
                velocity[name] = 0.8 * velocity[name] - 0.2 * (decay + gradients[name])
                weights[name] += velocity[name]

    for step in range(STEPS):
        x = feed.images(step, torch.arange(BATCH)).double()
        labels = feed.labels(step, torch.arange(BATCH))
        first, second = ("a.weight", "a.bias"), ("b.weight", "b.bias")
        total = {name: torch.zeros_like(weights[name]) for name in first}
        loss_of_step = 0.0
        for i in range(0, BATCH, size):
            hidden = torch.relu(x[i : i + size] @ weights["a.weight"].T + weights["a.bias"])
            scores = hidden @ weights["b.weight"].T + weights["b.bias"]
            loss = nn.CrossEntropyLoss()(scores, labels[i : i + size])
            names = (*first, *second)
            found = torch.autograd.grad(loss, [weights[name] for name in names])
            gradients = dict(zip(names, found, strict=True))
            for name in first:
                total[name] += gradients[name] * size / BATCH
            update(second, gradients)
            loss_of_step += float(loss.detach()) * size / BATCH
        update(first, total)
        losses.append(loss_of_step)
    return weights, losses


@pytest.mark.parametrize("size", [6, 3, 2, 1])
def test_it_trains_as_the_recipe_says(size: int) -> None:
    updates = {"b": size} if size < BATCH else {}
    reference = Reference(
        NET, RandomFeed(NET, BATCH), RECIPE, global_batch=BATCH, dtype="float64",
        update_examples=updates,
    )  # fmt: skip
    expected, losses = by_hand(reference.weights, size)
    assert [reference.step(step) for step in range(STEPS)] == pytest.approx(losses, rel=1e-12)
    for name, weight in expected.items():
        torch.testing.assert_close(reference.weights[name], weight, rtol=1e-12, atol=1e-14)
