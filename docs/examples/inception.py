"""GoogLeNet's block (Szegedy et al. 2015) for small images: four towers whose channels join."""

from __future__ import annotations

from orchestrator.models import (
    Concat,
    Conv,
    GlobalAveragePool,
    Layer,
    Linear,
    MaxPool,
    Model,
    ReLU,
)


def inception(width: int = 16, classes: int = 10) -> Model:
    """One block between a stem and the classifier.

    Args:
        width: channels of the stem.
    """

    def conv(name: str, channels: int, kernel: int, source: str) -> list[Layer]:
        return [
            Conv(
                name=name, channels=channels, kernel=kernel, padding=kernel // 2, inputs=(source,)
            ),
            ReLU(name=f"{name}.relu"),
        ]  # fmt: skip

    return Model(
        "inception",
        (3, 32, 32),
        [
            Conv(name="stem", channels=width, kernel=5, stride=2, padding=2),
            ReLU(name="relu"),
            *conv("a", width, 1, "relu"),
            *conv("b1", width, 1, "relu"),
            *conv("b", 2 * width, 3, "b1.relu"),
            *conv("c1", width // 4, 1, "relu"),
            *conv("c", width // 2, 5, "c1.relu"),
            MaxPool(name="d1", kernel=3, stride=1, padding=1, inputs=("relu",)),
            *conv("d", width // 2, 1, "d1"),
            Concat(name="joined", inputs=("a.relu", "b.relu", "c.relu", "d.relu")),
            GlobalAveragePool(name="mean"),
            Linear(name="fc", features=classes),
        ],
    )
