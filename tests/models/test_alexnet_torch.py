"""AlexNet of 2012 as one would write it in torch today, and ours with the same weights: equal.

Written from the paper's section 3 and figure 2, grouped convolutions for the two columns, and with
nothing of ours in it but the dropout masks, which are an input of both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.execute.reference import Reference
from orchestrator.models import build_model
from orchestrator.models.randomness import Draw, keep_mask

WIDTH, SIZE, CLASSES, IMAGES = 1 / 16, 96, 7, 3


class ColumnNorm(nn.Module):
    """Local response norm in each of the two columns alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([self.norm(left), self.norm(right)], 1)


class Masked(nn.Module):
    """Dropout with a mask that is given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def alexnet(masks: list[Tensor]) -> nn.Sequential:
    """96, 256, 384, 384, 256 kernels and 4096 units, each a sixteenth (256 units)."""
    over_the_edge = nn.ZeroPad2d((0, 3, 0, 3))  # 96 + 3 = 22 * 4 + 11
    return nn.Sequential(
        over_the_edge, nn.Conv2d(3, 8, 11, 4), nn.ReLU(), ColumnNorm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 16, 5, padding=2, groups=2), nn.ReLU(), ColumnNorm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(16 * 2 * 2, 256), nn.ReLU(), Masked(masks[0]),
        nn.Linear(256, 256), nn.ReLU(), Masked(masks[1]), nn.Linear(256, CLASSES),
    ).double()  # fmt: skip


class Batch:
    """One batch, whichever step asks."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
        self.y = torch.randint(CLASSES, (IMAGES,), generator=generator)

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self.x[samples]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self.y[samples]


def test_the_loss_and_every_update_are_those_of_plain_torch() -> None:
    model = build_model("alexnet2012", {"width": WIDTH, "image_size": SIZE, "classes": CLASSES})
    batch, recipe = Batch(), model.recipe
    ours = Reference(model, batch, recipe, global_batch=IMAGES, dtype="float64", update_examples={})
    masks = []
    for name in ("drop6", "drop7"):
        sized = model.layers[model.index[name]]
        like = torch.empty(IMAGES, *sized.output_shape, dtype=torch.float64)
        draw = Draw(recipe.seed, 0, torch.arange(IMAGES), IMAGES)
        masks.append(keep_mask(name, sized.output_shape, sized.output.whole, 0.5, draw, like))
    net = alexnet(masks)
    theirs = dict(zip(ours.weights, net.parameters(), strict=True))
    with torch.no_grad():
        for name, weight in theirs.items():
            weight.copy_(ours.weights[name])
    loss = nn.CrossEntropyLoss()(net(batch.x.double()), batch.y)
    loss.backward()
    assert abs(ours.step(0) - float(loss.detach())) < 1e-12 * float(loss.detach())
    for name, weight in theirs.items():
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0, name
        decay = recipe.weight_decay * weight.detach() if name.endswith("weight") else 0
        expected = -recipe.lr * (weight.grad + decay)
        found = ours.updates.velocities[ours.names.index(name)]  # type: ignore[attr-defined]
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error < 1e-10, name
        torch.testing.assert_close(ours.weights[name].detach(), weight.detach() + expected)
