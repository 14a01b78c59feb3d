"""A residual network (He et al. 2016) of two blocks, the second with a projection."""

from __future__ import annotations

from orchestrator.models import (
    Add,
    BatchNorm,
    Conv,
    GlobalAveragePool,
    Layer,
    Linear,
    MaxPool,
    Model,
    ReLU,
)


def residual(width: int = 16, classes: int = 10, group: int = 16) -> Model:
    """Stem, two blocks, classifier.

    Args:
        width: channels of the stem.
        group: examples that share their batch norm's statistics.
    """

    def conv(name: str, channels: int, kernel: int, source: str, stride: int = 1) -> list[Layer]:
        return [
            Conv(
                name=name, channels=channels, kernel=kernel, padding=kernel // 2, stride=stride,
                inputs=(source,), bias=None,
            )
        ]  # fmt: skip

    return Model(
        "residual",
        (3, 64, 64),
        [
            *conv("stem", width, 7, "input", stride=2),
            BatchNorm(name="norm", group=group),
            ReLU(name="relu"),
            MaxPool(name="pool", kernel=3, stride=2, padding=1),
            *conv("blocks.0.conv1", width, 3, "pool"),
            ReLU(name="blocks.0.relu1"),
            *conv("blocks.0.conv2", width, 3, "blocks.0.relu1"),
            Add(name="blocks.0.sum", inputs=("blocks.0.conv2", "pool")),
            ReLU(name="blocks.0.relu2"),
            *conv("blocks.1.conv1", 2 * width, 3, "blocks.0.relu2", stride=2),
            ReLU(name="blocks.1.relu1"),
            *conv("blocks.1.conv2", 2 * width, 3, "blocks.1.relu1"),
            *conv("blocks.1.projection", 2 * width, 1, "blocks.0.relu2", stride=2),
            Add(name="blocks.1.sum", inputs=("blocks.1.conv2", "blocks.1.projection")),
            ReLU(name="blocks.1.relu2"),
            GlobalAveragePool(name="mean"),
            Linear(name="fc", features=classes),
        ],
    )
