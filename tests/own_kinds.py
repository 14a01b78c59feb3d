"""A model file with kinds of layer of its own, and its neighbours.

Some have parameters and some have none; one reads two inputs, one changes the number of channels.
"""

from __future__ import annotations

from pathlib import Path

NEIGHBOUR = """
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.models import Constant, Layer, LayerPart, Normal, ParameterSpec, Value

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Around(Normal):
    \"\"\"Initial values about a middle other than 0.\"\"\"

    middle: float

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        return super().draw(shape, generator) + self.middle


@dataclass(frozen=True, kw_only=True)
class Scale(Layer):
    \"\"\"A factor and an offset for every channel.\"\"\"

    start: float = 1.0

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape, axes = (inputs[0].channels,), ("channel",)
        return (
            ParameterSpec("weight", shape, Around(0.01, self.start), axes),
            ParameterSpec("bias", shape, Constant(0.0), axes, decays=False),
        )

    def macs(self, sized, out, reads) -> int:
        from orchestrator.models.box import volume

        return volume(out)

    def compute(
        self, part: LayerPart, inputs: Sequence[Tensor], parameters: Sequence[Tensor], draw: object
    ) -> Tensor:
        weight, bias = parameters
        return (inputs[0].movedim(1, -1) * weight + bias).movedim(-1, 1)
"""
NET = """
from __future__ import annotations

from dataclasses import dataclass

from neighbour import Scale
from orchestrator.models import Conv, Layer, Linear, Model, Value


@dataclass(frozen=True, kw_only=True)
class Centred(Layer):
    \"\"\"Less the mean over all channels, so that a channel needs all of them.\"\"\"

    def reads(self, sized, out):
        return ((sized.inputs[0].whole[0], *out[1:]),)

    def compute(self, part, inputs, parameters, draw):
        from later import mean

        return part.take_out(inputs[0] - mean(inputs[0]))


class Tanh(Layer):
    kind = "squash"

    def compute(self, part, inputs, parameters, draw):
        return inputs[0].tanh()


@dataclass(frozen=True, kw_only=True)
class Gate(Layer):
    \"\"\"One value as far as another, of the same shape, lets it through.\"\"\"

    input_count = 2

    def reads(self, sized, out):
        return (out, out)

    def compute(self, part, inputs, parameters, draw):
        x, gate = inputs
        return x * gate.sigmoid()


@dataclass(frozen=True, kw_only=True)
class Maxout(Layer):
    \"\"\"The largest of every ``pieces`` channels.\"\"\"

    pieces: int = 2

    def output(self, value):
        return Value((value.channels // self.pieces, *value.shape[1:]), value.axes)

    def reads(self, sized, out):
        channels = tuple((a * self.pieces, b * self.pieces) for a, b in out[0])
        return ((channels, *out[1:]),)

    def compute(self, part, inputs, parameters, draw):
        return inputs[0].unflatten(1, (-1, self.pieces)).amax(2)


def build(depth: int = 1, side: int = 6, scaled: bool = True):
    print("built")
    chain = [Conv(name="conv1", channels=8, kernel=3, weight_std=0.3)]
    for i in range(depth):
        chain += [Tanh(name=f"tanh{i}")]
        chain += [Scale(name=f"scale{i}")] if scaled else []
    chain += [Gate(name="gate", inputs=(chain[-1].name, "conv1")), Centred(name="centred")]
    chain += [Maxout(name="maxout"), Linear(name="fc", features=10), Scale(name="out")]
    return Model("own", (1, side, side + 2), chain)
"""
PLACEMENTS = {
    "channel": "{layers: conv1..out, ranks: [0, 1], split: channel}",
    "input": "{layers: conv1..tanh0, ranks: [0, 1], split: channel}\n"
    "  - {layers: scale0..out, ranks: [0, 1], split: input}",
    "batch": "{layers: conv1..out, ranks: [0, 1], split: batch}",
    "height": "{layers: conv1..maxout, ranks: [0, 1], split: height}\n"
    "  - {layers: fc..out, ranks: [0, 1], split: channel}",
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
