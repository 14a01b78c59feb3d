"""A model file with kinds of layer of its own, with weights and without, and its neighbours."""

from __future__ import annotations

from pathlib import Path

NEIGHBOUR = """
from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from orchestrator.models import Constant, Layer, LayerPart, ParameterSpec, Uniform, Value
from orchestrator.models.box import shape_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scale(Layer):
    \"\"\"A factor and an offset for every channel.\"\"\"

    start: float = 1.0

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        (value,) = inputs
        shape, axes = (value.channels,), ("channel",)
        return (
            ParameterSpec("weight", shape, Uniform(self.start), axes),
            ParameterSpec("bias", shape, Constant(0.0), axes, decays=False),
        )

    def macs(self, sized, out, reads) -> int:
        return prod(shape_of(out))

    def compute(self, part: LayerPart, inputs, parameters, draw) -> Tensor:
        weight, bias = parameters
        return (inputs[0].movedim(1, -1) * weight + bias).movedim(-1, 1)
"""
NET = """
from __future__ import annotations

from dataclasses import dataclass

from neighbour import Scale
from orchestrator.models import Conv, Layer, Linear, Model, Value
from orchestrator.models.ranges import local, normalise


@dataclass(frozen=True, kw_only=True)
class Centred(Layer):
    \"\"\"Less the mean over all channels, so that a channel needs all of them.\"\"\"

    def reads(self, sized, out):
        return ((((0, sized.inputs[0].channels),), *out[1:]),)

    def compute(self, part, inputs, parameters, draw):
        from later import mean

        (x,) = inputs
        ((first, last),) = local(part.out[0], part.reads[0][0])
        return (x - mean(x))[:, first:last]


class Tanh(Layer):
    kind = "squash"

    def compute(self, part, inputs, parameters, draw):
        (x,) = inputs
        return x.tanh()


@dataclass(frozen=True, kw_only=True)
class Larger(Layer):
    \"\"\"Of two values, channel by channel, the larger; then their sum, so channels double.\"\"\"

    input_count = 2

    def output(self, a, b):
        return Value((2 * a.channels, *a.shape[1:]), a.axes)

    def reads(self, sized, out):
        half = sized.inputs[0].channels
        mine = normalise((c % half, c % half + 1) for a, b in out[0] for c in range(a, b))
        return ((mine, *out[1:]),) * 2

    def compute(self, part, inputs, parameters, draw):
        import torch

        a, b = inputs
        half = part.sized.inputs[0].channels
        at = [c for low, high in part.reads[0][0] for c in range(low, high)].index
        rows = []
        for c in (c for low, high in part.out[0] for c in range(low, high)):
            act = torch.maximum if c < half else torch.add
            rows.append(act(a[:, at(c % half)], b[:, at(c % half)]))
        return torch.stack(rows, 1)


def build(depth: int = 1, side: int = 6, scaled: bool = True):
    print("built")
    chain = [Conv(name="conv1", channels=8, kernel=3, weight_std=0.3)]
    for i in range(depth):
        chain += [Tanh(name=f"tanh{i}")]
        chain += [Scale(name=f"scale{i}")] if scaled else []
    chain += [Larger(name="larger", inputs=(chain[-1].name, "tanh0"))]
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
