"""An axis that no file of the package names is planned, shown, verified, run and simulated.

The model file has volumes of (channel, depth, height, width), and vectors for each slice of depth.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator.plan import AXES, json_schema, load_plan
from orchestrator.plan.strict_yaml import read_document
from orchestrator.program import compile_plan
from orchestrator.program.ledger import edges
from orchestrator.program.resolve import model_of
from tests.cli.command import command, refused

NET = """
from __future__ import annotations

from dataclasses import dataclass

from orchestrator.models import BatchNorm, Constant, Layer, LayerNorm, Linear, Model, Normal
from orchestrator.models import ParameterSpec, ReLU, Value
from orchestrator.models.box import padding_of, windows

AXES = ("channel", "depth", "height", "width")


@dataclass(frozen=True, kw_only=True)
class Volume(Layer):
    \"\"\"A scan's slices, which come as an image's channels, as a volume of one channel.\"\"\"

    def output(self, image):
        return Value((1, *image.shape), AXES)

    def reads(self, sized, out):
        return (out[1:],)

    def compute(self, part, inputs, parameters, draw):
        return inputs[0].unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class Conv3(Layer):
    \"\"\"Convolution of volumes.\"\"\"

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0

    def output(self, value):
        reach = 2 * self.padding - self.kernel
        return Value(
            (self.channels, *((n + reach) // self.stride + 1 for n in value.shape[1:])), AXES
        )

    def uncut(self, sized, axis):
        wide = axis != "channel" and self.padding >= self.kernel
        return "its padding is as wide as its kernel" if wide else ""

    def reads(self, sized, out):
        sides = zip(out[1:], sized.input_shape[1:], sized.output_shape[1:])
        return ((
            sized.inputs[0].whole[0],
            *(windows(r, self.kernel, self.stride, self.padding, n, m) for r, n, m in sides),
        ),)

    def parameters(self, value):
        shape = (self.channels, value.channels, *[self.kernel] * 3)
        axes = ("channel", None, None, None, None)
        bias = ParameterSpec("bias", (self.channels,), Constant(0.1), ("channel",), decays=False)
        return (ParameterSpec("weight", shape, Normal(0.2), axes), bias)

    def macs(self, sized, out, reads):
        from orchestrator.models.box import volume

        return volume(out) * sized.inputs[0].channels * self.kernel**3

    def compute(self, part, inputs, parameters, draw):
        from torch.nn.functional import conv3d, pad

        before, after = part.sized.input_shape, part.sized.output_shape
        pads = (self.padding, self.padding)
        padding = padding_of(part.out, self.kernel, self.stride, pads, before, after)
        return conv3d(pad(inputs[0], padding), *parameters, self.stride)

    def whole(self, sized, inputs, parameters, draw):
        from torch.nn.functional import conv3d

        weight, bias = parameters["weight"], parameters["bias"]
        return conv3d(inputs[0], weight, bias, self.stride, self.padding)


@dataclass(frozen=True, kw_only=True)
class Slices(Layer):
    \"\"\"The mean of each slice and channel: (depth, channel).\"\"\"

    def output(self, value):
        return Value((value.size("depth"), value.channels), ("depth", "channel"))

    def reads(self, sized, out):
        return ((out[1], out[0], *sized.inputs[0].whole[2:]),)

    def compute(self, part, inputs, parameters, draw):
        return inputs[0].mean((3, 4)).transpose(1, 2)


def build(by_slice: bool = False, padding: int = 1):
    layers = [
        Volume(name="volume"),
        Conv3(name="conv1", channels=4, padding=padding, stride=2),
        BatchNorm(name="norm", group=2),
        ReLU(name="relu1"),
        Conv3(name="conv2", channels=4, padding=1),
        ReLU(name="relu2"),
    ]
    if by_slice:
        layers += [
            Slices(name="slices"),
            LayerNorm(name="slice_norm"),
            Linear(name="hidden", features=8, weight_std=0.3),
        ]
    return Model("scan", (9, 8, 6), [*layers, Linear(name="fc", features=4, weight_std=0.3)])
"""
REST = "{layers: fc, ranks: [0, 1], split: channel}"
PLACEMENTS = {
    "depth": ("{layers: volume..relu2, ranks: [0, 1], split: depth}", REST),
    "depth in uneven shares": (
        "{layers: volume..relu2, ranks: 0..2, split: depth, shares: [2, 1, 1]}", REST
    ),
    "depth x width": (
        "{layers: volume..relu2, ranks: 0..3, split: {depth: 2, width: 2}, "
        "shares: {depth: [3, 2]}}", REST
    ),
    "batch x depth x channel": (
        "{layers: volume..relu2, ranks: 0..7, split: {batch: 2, depth: 2, channel: 2}}", REST
    ),
    "stages": (
        "{layers: volume..relu1, ranks: [0, 1], split: depth}",
        "{layers: conv2..relu2, ranks: [2, 3], split: height}",
        "{layers: fc, ranks: [2], split: none}",
    ),
}  # fmt: skip
BY_SLICE = {
    "all by depth": ("{layers: all, ranks: [0, 1], split: depth}",),
    "depth x channel": (
        "{layers: volume..relu2, ranks: 0..3, split: {depth: 2, batch: 2}}",
        "{layers: slices..fc, ranks: 0..3, split: {depth: 2, channel: 2}}",
    ),
}


def plan(
    folder: Path, entries: tuple[str, ...], more: str = "", *, options: str = "", name: str = ""
) -> str:
    """A plan and its model file in a folder; gives the plan's path."""
    (folder / "scan.py").write_text(NET)
    model = f"{{name: {name}}}" if name else f"{{file: scan.py, function: build{options}}}"
    path = folder / "scan.yaml"
    placement = "".join(f"  - {entry}\n" for entry in entries)
    path.write_text(
        f"schema_version: 1\nname: scan\nglobal_batch_size: 8\nmodel: {model}\n{more}"
        f"placement:\n{placement}"
    )
    return str(path)


def verified(file: str) -> None:
    ended = command("verify", file, "--json", "--batch", "8")
    assert ended.code == 0, ended.err
    (found,) = json.loads(ended.out)["plans"]
    assert found["passed"]
    assert found["deadlock_free"]
    assert found["ledger_exact"]
    assert found["loss_relative_error"] <= 1e-9
    assert found["parameter_relative_error"] <= 1e-9


def test_the_package_does_not_know_it() -> None:
    assert "depth" not in AXES


@pytest.mark.parametrize("more", ["", "n_microbatches: 2\nschedule: 1F1B\n"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_network_cut_along_it_equals_one_device(tmp_path: Path, name: str, more: str) -> None:
    if "1F1B" in more:
        more = more if name == "stages" else "n_microbatches: 2\n"
    verified(plan(tmp_path, PLACEMENTS[name], more))


@pytest.mark.parametrize("name", BY_SLICE)
def test_a_loss_for_each_position_along_it(tmp_path: Path, name: str) -> None:
    verified(plan(tmp_path, BY_SLICE[name], options=", by_slice: true"))


def test_neighbours_exchange_a_halo(tmp_path: Path) -> None:
    """Of five slices of 4 x 3 in 4 channels, rank 0 has two; conv2 reads one to either side."""
    read = load_plan(plan(tmp_path, PLACEMENTS["depth"]))
    program = compile_plan(read, model_of(read))
    halos = {
        (edge.from_rank, edge.to_rank): count
        for edge, count in edges(program).items()
        if edge.layer == "conv2" and edge.direction == "forward"
    }
    assert halos == dict.fromkeys([(0, 1), (1, 0)], 8 * 4 * 4 * 3 * 4)


def test_show_and_its_picture(tmp_path: Path) -> None:
    file = plan(tmp_path, PLACEMENTS["depth"])
    picture = tmp_path / "scan.svg"
    found = json.loads(command("show", file, "--json", "--picture", str(picture)).out)
    splits = {layer["name"]: layer["split"] for layer in found["layers"]}
    assert splits["conv1"] == "depth"
    halos = {(e["from_rank"], e["to_rank"]) for e in found["edges"] if e["layer"] == "conv2"}
    assert halos == {(0, 1), (1, 0)}
    drawn = picture.read_text()
    assert "depth 0:2" in drawn
    assert "depth 2:5" in drawn


def test_run_and_simulate(tmp_path: Path) -> None:
    file = plan(tmp_path, PLACEMENTS["depth"])
    ended = command(
        "run", file, "--data", "synthetic", "--steps", "2", "--launcher", "local",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ended = command("simulate", file, "--cluster", "gtx580x2", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["step_time_s"] > 0


def test_it_is_written_back_and_editors_know_it(tmp_path: Path) -> None:
    file = plan(tmp_path, PLACEMENTS["depth x width"])
    found = load_plan(file)
    assert "split: {depth: 2, width: 2}" in found.to_yaml()
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(read_document(Path(file).read_text(), "x").value)
    other = Path(plan(tmp_path, PLACEMENTS["depth"], name="lenet5")).read_text()
    assert not validator.is_valid(read_document(other, "x").value)


ALL = "{layers: all, ranks: [0, 1], split: depth}"
# entries, further lines, options, model, place, message, remedy
REFUSED = {
    "a layer without it": (
        (ALL,), "", "", "placement[0].split",
        "fc cannot be split by depth: its output has no depth; allowed: batch or channel",
        "place fc in an entry of its own, with split: channel or none",
    ),
    "a layer that it does not suit": (
        (ALL,), ", padding: 3", "", "placement[0].split",
        "conv1 cannot be split by depth: its padding is as wide as its kernel; allowed: batch",
        "with split: channel or none",
    ),
    "nearly its name": (
        ("{layers: all, ranks: [0, 1], split: dept}",), "", "", "placement[0].split",
        "volume cannot be split by dept: its output has no dept; allowed: batch, channel, depth, "
        "height or width",
        "did you mean depth?",
    ),
    "a built-in model": (
        (ALL,), "", "lenet5", "placement[0].split",
        "found 'depth'; allowed: none, batch, channel, height, width, token or input, or a grid",
        "did you mean width?",
    ),
    "a grid over a built-in model": (
        ("{layers: all, ranks: [0, 1], split: {depth: 2}}",), "", "lenet5",
        "placement[0].split.depth", "found the key 'depth'; allowed: batch, channel", "mean width?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_where_it_does_not_suit_it_is_refused(tmp_path: Path, name: str) -> None:
    entries, options, model, place, message, remedy = REFUSED[name]
    told = refused("verify", plan(tmp_path, entries, options=options, name=model))
    flat = " ".join(told.split())
    assert place in flat
    assert message in flat
    assert remedy in flat
