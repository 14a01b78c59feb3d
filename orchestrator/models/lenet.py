"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) with ReLU and max pooling, as taught today."""

from __future__ import annotations

from orchestrator.models.activations import ReLU
from orchestrator.models.conv import Conv
from orchestrator.models.linear import Linear
from orchestrator.models.model import Model
from orchestrator.models.pool import MaxPool


def build_lenet5(classes: int = 10, image_size: int = 32, width: float = 1.0) -> Model:
    """Two convolutions and three linear layers on gray images.

    Args:
        classes: class scores.
        image_size: side of the square input.
        width: factor on every channel and feature count but the classes.
    """

    def wide(channels: int) -> int:
        return channels if width == 1 else max(1, round(channels * width / 2)) * 2

    chain = [
        Conv(name="conv1", channels=wide(6), kernel=5, weight_std=0.1),
        ReLU(name="relu1"),
        MaxPool(name="pool1", kernel=2, stride=2),
        Conv(name="conv2", channels=wide(16), kernel=5, weight_std=0.1),
        ReLU(name="relu2"),
        MaxPool(name="pool2", kernel=2, stride=2),
        Linear(name="fc3", features=wide(120), weight_std=0.05),
        ReLU(name="relu3"),
        Linear(name="fc4", features=wide(84), weight_std=0.1),
        ReLU(name="relu4"),
        Linear(name="fc5", features=classes, weight_std=0.1),
    ]
    return Model("lenet5", (1, image_size, image_size), chain)
