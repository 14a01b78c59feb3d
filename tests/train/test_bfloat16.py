"""LeNet-5 learns scikit-learn's digits in bfloat16 as well as in float32."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as nnf

from orchestrator.execute.local import LocalExecutor
from orchestrator.models import build_model
from orchestrator.models.model import Recipe
from orchestrator.models.randomness import Draw
from orchestrator.models.value import INPUT
from tests.program.small import small_program

LENET = build_model("lenet5", {"image_size": 16})
TRAINED, BATCH, EPOCHS = 1280, 32, 10
COLUMNS = (
    "layers: conv1..relu4, ranks: [0, 1], split: channel",
    "layers: fc5, ranks: [0], split: none",
)


class Digits:
    """Shuffled once; the last 517 are not trained on."""

    def __init__(self) -> None:
        found = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        small = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8 - 1
        self.all_images = nnf.interpolate(small, (16, 16), mode="bilinear")
        self.all_labels = torch.tensor(found.target)[order]

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self.all_images[self._places(step, samples)]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self.all_labels[self._places(step, samples)]

    def _places(self, step: int, samples: Tensor) -> Tensor:
        epoch, number = divmod(step, TRAINED // BATCH)
        order = torch.randperm(TRAINED, generator=torch.Generator().manual_seed(epoch))
        return order[number * BATCH + samples]


def accuracy(weights: dict[str, Tensor], digits: Digits) -> float:
    """In percent, on the digits that were not trained on; computed in float32."""
    values = {INPUT: digits.all_images[TRAINED:]}
    for sized in LENET.layers[:-1]:
        named = {spec.name: weights[f"{sized.name}.{spec.name}"].float() for spec in sized.specs}
        inputs = [values[source] for source in sized.sources]
        draw = Draw(0, 0, torch.arange(len(inputs[0])), len(inputs[0]))
        values[sized.name] = sized.whole(inputs, named, draw)
    right = values[LENET.layers[-2].name].argmax(1) == digits.all_labels[TRAINED:]
    return 100 * float(right.double().mean())


def trained(dtype: str, seed: int) -> float:
    """The accuracy after some epochs, split over two ranks."""
    digits = Digits()
    program = small_program(LENET, *COLUMNS, batch=BATCH, dtype=dtype)
    executor = LocalExecutor(program, digits, Recipe(lr=0.02, seed=seed))
    for step in range(EPOCHS * TRAINED // BATCH):
        executor.step(step)
    return accuracy(executor.parameters(), digits)


@pytest.mark.slow
def test_bfloat16_reaches_what_float32_does() -> None:
    """Within half a point, over three seeds."""
    reached = {
        dtype: [trained(dtype, seed) for seed in range(3)] for dtype in ("float32", "bfloat16")
    }
    print(reached)
    means = {dtype: sum(found) / len(found) for dtype, found in reached.items()}
    assert means["float32"] > 95
    assert abs(means["bfloat16"] - means["float32"]) <= 0.5
