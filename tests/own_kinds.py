"""A model file with kinds of layer of its own, with weights and without, and its neighbours."""

from __future__ import annotations

from pathlib import Path

NEIGHBOUR = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.models import Layer, Shape, Term

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from orchestrator.models.torch_layers import Shard


@dataclass(frozen=True, kw_only=True)
class Scale(Layer):
    \"\"\"A factor and an offset for every channel.\"\"\"

    start: float = 1.0
    has_weights: ClassVar[bool] = True

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        return tuple(Term((c, c + 1), (0, 1), ((c, c + 1),)) for c in range(input_shape[0]))

    def initial_weight(self, shape: Shape, generator: Generator) -> Tensor:
        return super().initial_weight(shape, generator) + self.start

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        (weight,) = shard.weights
        return (x.movedim(1, -1) * weight[:, 0] + shard.bias).movedim(-1, 1)
"""
NET = """
from __future__ import annotations

from dataclasses import dataclass

from neighbour import Scale
from orchestrator.models import Conv, Layer, Linear, Model


@dataclass(frozen=True, kw_only=True)
class Centred(Layer):
    \"\"\"Less the mean over all channels, so that a channel needs all of them.\"\"\"

    def reads(self, input_shape, out):
        return ((0, input_shape[0]),)

    def forward(self, x, shard):
        from later import mean

        return shard.take_out(x - mean(x))


class Tanh(Layer):
    kind = "squash"

    def forward(self, x, shard):
        return x.tanh()


def build(depth: int = 1, side: int = 6, scaled: bool = True):
    print("built")
    chain = [Conv(name="conv1", channels=8, kernel=3, weight_std=0.3)]
    for i in range(depth):
        chain += [Tanh(name=f"tanh{i}")]
        chain += [Scale(name=f"scale{i}")] if scaled else []
    chain += [Centred(name="centred"), Linear(name="fc", features=10), Scale(name="out")]
    return Model("own", (1, side, side + 2), chain)
"""
PLACEMENTS = {
    "channel": "{layers: conv1..out, ranks: [0, 1], split: channel}",
    "input": "{layers: conv1..tanh0, ranks: [0, 1], split: channel}\n"
    "  - {layers: scale0..out, ranks: [0, 1], split: input}",
    "batch": "{layers: conv1..out, ranks: [0, 1], split: batch}",
    "grid": "{layers: conv1..out, ranks: 0..3, split: {batch: 2, channel: 2}}",
    "one": "{layers: conv1..out, ranks: [0], split: none}",
    "stages": "{layers: conv1..tanh0, ranks: [0], split: none}\n"
    "  - {layers: scale0..out, ranks: [1], split: none}",
}


def plan(folder: Path, split: str = "channel", more: str = "", options: str = "") -> str:
    """A plan, its model file and what that imports, in a folder; gives the plan's path."""
    for name, text in (
        ("net", NET), ("neighbour", NEIGHBOUR), ("later", "def mean(x): return x.mean(1, True)\n")
    ):  # fmt: skip
        (folder / f"{name}.py").write_text(text)
    path = folder / "own.yaml"
    path.write_text(
        "schema_version: 1\nname: own\nglobal_batch_size: 8\n"
        f"model: {{file: net.py, function: build{options}}}\n"
        f"{more}placement:\n  - {PLACEMENTS[split]}\n"
    )
    return str(path)
