"""The fully-connected part of AlexNet 2012 as a model of its own, without dropout.

Read by plans as ``model: {file: fc_net.py, function: build}``.
"""

from __future__ import annotations

from orchestrator.models import Linear, Model, ReLU


def build(classes: int = 1000, width: float = 1.0) -> Model:
    """9216 -> fc6 4096 -> fc7 4096 -> fc8 ``classes``.

    Args:
        width: factor on the first three sizes.
    """
    features = round(4096 * width)
    chain = [
        Linear(name="fc6", features=features, bias=1),
        ReLU(name="relu6"),
        Linear(name="fc7", features=features, bias=1),
        ReLU(name="relu7"),
        Linear(name="fc8", features=classes),
    ]
    return Model("alexnet2012-fc", (round(9216 * width),), chain)
