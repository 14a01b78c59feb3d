"""A user's own kinds of layer, of any connectivity, go through every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.calibration import shape_key
from tests.cli.command import command, refused
from tests.own_kinds import NET, PLACEMENTS, plan


def test_show(tmp_path: Path) -> None:
    file = plan(tmp_path)
    picture = tmp_path / "own.svg"
    ended = command("show", file, "--json", "--picture", str(picture), "--cluster", "gtx580x2")
    assert (ended.code, ended.err) == (0, "built\n")
    found = json.loads(ended.out)
    kinds = {layer["name"]: (layer["kind"], layer["parameters"]) for layer in found["layers"]}
    assert kinds == {
        "conv1": ("conv", 80),
        "tanh0": ("squash", 0),
        "scale0": ("scale", 16),
        "gate": ("gate", 0),
        "centred": ("centred", 0),
        "maxout": ("maxout", 0),
        "fc": ("linear", 970),
        "out": ("scale", 20),
    }
    assert all(rank["peak_memory_bytes"] > 0 for rank in found["ranks"])
    assert "scale0" in picture.read_text()
    assert "squash" in command("show", file).out


@pytest.mark.parametrize("split", PLACEMENTS)
@pytest.mark.parametrize("more", ["", "n_microbatches: 2\nactivation_checkpoint: always\n"])
def test_verify(tmp_path: Path, split: str, more: str) -> None:
    ended = command("verify", plan(tmp_path, split, more), "--json", "--batch", "8")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["plans"][0]["passed"]


def test_the_model_and_the_kind_of_the_readme(tmp_path: Path) -> None:
    """Pasted into one file as they stand there, with the kind as a layer of the model."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    pool = 'GlobalAveragePool(name="pool")'
    (tmp_path / "my_net.py").write_text(
        "\n\n".join(blocks).replace(pool, f"Scale(name='s'), {pool}")
    )
    (tmp_path / "mine.yaml").write_text(
        "schema_version: 1\nname: mine\nglobal_batch_size: 32\n"
        "model: {file: my_net.py, function: build, channels: 64}\n"
        "placement: [{layers: conv1..fc, ranks: [0, 1], split: channel}]\n"
    )
    ended = command("verify", str(tmp_path / "mine.yaml"), "--json")
    assert ended.code == 0, ended.err
    layers = json.loads(command("show", str(tmp_path / "mine.yaml"), "--json").out)["layers"]
    assert {"name": "s", "kind": "scale", "parameters": 64}.items() <= layers[5].items()


@pytest.mark.parametrize("schedule", ["ZBVZeroBubble", "InterleavedZeroBubble"])
def test_verify_with_backwards_in_two_halves(tmp_path: Path, schedule: str) -> None:
    ranks = "[0, 1]" if schedule == "InterleavedZeroBubble" else "[0, 0]"
    first, second = json.loads(ranks)
    file = plan(tmp_path, "stages", f"n_microbatches: 2\nschedule: {schedule}\n")
    entry = f"--set=placement.1.ranks=[{second}]"
    ended = command("verify", file, "--json", entry, f"--set=placement.0.ranks=[{first}]")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["plans"][0]["passed"]


def test_simulate_and_compare(tmp_path: Path) -> None:
    file = plan(tmp_path)
    ended = command("simulate", "--plan", file, "--cluster", "gtx580x2", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["step_time_s"] > 0
    told = command("simulate", "--plan", file, "--cluster", "gtx580x2").out
    assert "scale: no efficiency is given, 0.35 of the peak is assumed" in told
    assert "squash" not in told  # moves memory only
    nearly = ("--set", "cluster.device.efficiency.scal=0.5")
    told = command("simulate", "--plan", file, "--cluster", "gtx580x2", *nearly).out
    assert "scale: no efficiency is given (is scal meant for it?), 0.35 of the peak" in told
    given = ("--set", "cluster.device.efficiency.scale=0.0001")
    ended = command("simulate", "--plan", file, "--cluster", "gtx580x2", *given, "--json")
    assert ended.code == 0, ended.err
    assert not any("scale" in note for note in json.loads(ended.out)["notes"])
    assert json.loads(ended.out)["compute_time_s"] > found["compute_time_s"]
    assert command("compare", file, "krizhevsky2012", "--cluster", "gtx580x2").code == 0


def test_a_calibration_measures_a_kind_of_ones_own(tmp_path: Path) -> None:
    """It once said that it was calibrated, of a cluster with no calibration."""
    file = plan(tmp_path)
    read = load_plan(file)
    program = compile_plan(read, model_of(read), dtype="float32")
    keys = {
        (shape_key(layer), part.examples, layer.sized.name)
        for segment in program.segments
        for part in segment.parts.values()
        for layer in part.layers
        if layer.sized.kind == "scale"
    }
    assert {name for *_, name in keys} == {"scale0", "out"}
    scale0 = [key for key in keys if key[2] == "scale0"]
    rows = ", ".join(
        f'{{kind: scale, shape: "{shape}", dtype: float32, batch: {examples}, pass: forward, '
        "seconds: 3}"
        for shape, examples, _ in scale0
    )
    calibration = (
        "cluster.calibration={date: 2026-11-24, hardware: h, model: own, versions: {}, "
        f"layers: [{rows}]}}"
    )
    call = ("simulate", "--plan", file, "--cluster", "gtx580x2", "--json")
    without, found = (
        json.loads(command(*call, *more).out) for more in ((), ("--set", calibration))
    )
    chunks = program.segments[0].chunks
    assert found["compute_time_s"] - without["compute_time_s"] == pytest.approx(
        3 * chunks * len(scale0), rel=0.01
    )
    notes = " ".join(found["notes"])
    assert "scale0 backward was not measured: estimated" in notes
    assert "scale0 forward" not in notes
    assert "out forward was not measured: estimated" in notes
    compared = command("compare", file, "--cluster", "gtx580x2", "--set", calibration, "--json")
    item = json.loads(compared.out)["items"][0]["predicted"]
    assert item["compute_time_s"] == pytest.approx(found["compute_time_s"])


def test_run_resume_and_compare(tmp_path: Path) -> None:
    file, out = plan(tmp_path), tmp_path / "run"
    options = ("--launcher", "local", "--no-metrics", "--steps", "2")
    ended = command("run", "--plan", file, *options, "--out", str(out))
    assert ended.code == 0, ended.err
    # what the model file imports goes along, what a function imports later, too
    copies = {path.name for path in out.glob("*.py")}
    assert copies == {"net.py", "neighbour.py", "later.py"}
    for name in copies:
        (tmp_path / name).unlink()
    assert command("compare", str(out), "--cluster", "gtx580x2").code == 0
    again = ("run", "--plan", str(out / "plan.yaml"), *options, "--resume", str(out))
    assert command(*again).code == 0
    assert json.loads((out / "summary.json").read_text())["first_step"] == 2


def test_options_of_the_function_are_options_of_the_plan(tmp_path: Path) -> None:
    file = plan(tmp_path, options=", depth: 2, scaled: false")
    names = [x["name"] for x in json.loads(command("show", file, "--json").out)["layers"]]
    assert names == ["conv1", "tanh0", "tanh1", "gate", "centred", "maxout", "fc", "out"]
    deeper = command("show", file, "--json", "--set", "model.depth=3", "--set", "model.side=9")
    assert json.loads(deeper.out)["layers"][0]["output_shape"] == [8, 7, 9]
    assert len(json.loads(deeper.out)["layers"]) == 9
    out = tmp_path / "run"
    options = ("--launcher", "local", "--no-metrics", "--steps", "1", "--set", "model.depth=3")
    assert command("run", "--plan", file, *options, "--out", str(out)).code == 0
    written = yaml.safe_load((out / "plan.yaml").read_text())["model"]
    assert written == {"file": "net.py", "function": "build", "depth": 3, "scaled": False}
    assert command("compare", str(out), "--cluster", "gtx580x2").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (", dept: 3", "own.yaml:4, model.dept: net.py:build has no option 'dept'; it has: depth, "),
        (", depth: 3.0", "own.yaml:4, model.depth: net.py:build: option depth: found 3.0 (float)"),
        (", side: 2", "own.yaml:4, model.file: net.py:69: layer conv1: its input of 1x2x4 is too"),
        (", depth: -1, side: x", "model.side: net.py:build: option side: found 'x'; allowed: a w"),
    ],
)
def test_an_option_that_cannot_be_is_told(tmp_path: Path, options: str, message: str) -> None:
    for verb in ("show", "verify"):
        assert message in refused(verb, plan(tmp_path, options=options))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return inputs[0].tan()h", "net.py fails on import: SyntaxError"),
        (
            "return inputs[0].tangent()",
            "layer tanh0 fails: AttributeError: 'Tensor' object has no attribu",
        ),
        ("return inputs[0][:, :1]", "layer tanh0: its compute gives (8, 1, 4, 6) in torch.float"),
        ("return inputs[0].half()", "layer tanh0: its compute gives (8, 4, 4, 6) in torch.float16"),
        ("return inputs[0].detach()", "layer tanh0: its compute gives what autograd cannot follow"),
        ("return 3", "layer tanh0: its compute gives int; allowed: (8, 4, 4, 6) in"),
    ],
)
def test_a_kind_that_fails_is_told_by_layer_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    file = plan(tmp_path)
    (tmp_path / "net.py").write_text(NET.replace("return inputs[0].tanh()", line))
    run = ("run", "--plan", file, "--launcher", "local", "--no-metrics", "--steps", "1")
    out = tmp_path / "run"
    for call in (("verify", file, "--batch", "8"), (*run, "--out", str(out))):
        told = refused(*call)
        assert message in told
        assert "net.py:27" in told or "its compute gives" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "return inputs[0].tangent()",
            r"layer tanh0: its whole fails: AttributeError: .*net.py:30",
        ),
        ("return inputs[0][:, :1]", r"layer tanh0: its whole gives \(8, 1, 4, 6\) in torch.float"),
        ("return inputs[0].relu()", "loss differs by"),
    ],
)
def test_a_kind_that_says_another_whole_is_held_against_it(
    tmp_path: Path, line: str, message: str
) -> None:
    file = plan(tmp_path)
    whole = f"\n\n    def whole(self, sized, inputs, parameters, draw):\n        {line}"
    tanh = "return inputs[0].tanh()"
    (tmp_path / "net.py").write_text(NET.replace(tanh, f"{tanh}{whole}"))
    ended = command("verify", file, "--batch", "8")
    assert ended.code == (1 if "differs" in message else 2)
    assert re.search(message, ended.err + ended.out)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ("(12,)", "digits", "the model reads vectors of 12 values"),
        ("(4, 6)", "digits", "the model reads sequences and has a label for each token"),
        ("(4, 6) flat", "digits", "the model reads 4x6 values"),
        ("(12,)", "imagefolder:.", "an image folder has images of 3 channels"),
        ("(3, 4)", "imagefolder:.", "the model reads sequences and has a label for each token"),
        ("(3, 4) flat", "imagefolder:.", "an image folder has images of 3 channels"),
        ("(64,)", "digits", None),
        ("(3, 5, 7)", "digits", None),
        ("(12,)", "synthetic:40", None),
        ("(4, 6)", "synthetic:40", None),
        ("(4, 6) flat", "synthetic:40", None),
        ("(3, 5, 7)", "synthetic:40", None),
    ],
)
def test_examples_of_any_shape_are_drawn_and_trained_on_or_refused(
    tmp_path: Path, shape: str, data: str, message: str | None
) -> None:
    """A model of vectors once passed ``verify`` and died in ``run``.

    A model of (4, 6) scores each of 4 tokens, unless these are made ``flat`` before.
    """
    flat = shape.endswith(" flat")
    shape = shape.removesuffix(" flat")
    flatten, layers = ("Flatten(name='flat'), ", "relu1..flat") if flat else ("", "relu1")
    (tmp_path / "net.py").write_text(
        "from orchestrator.models import Flatten, Linear, Model, ReLU\n"
        f"def build(): return Model('m', {shape}, "
        f"[ReLU(name='relu1'), {flatten}Linear(name='fc', features=10)])\n"
    )
    file = tmp_path / "any.yaml"
    file.write_text(
        "schema_version: 1\nname: any\nglobal_batch_size: 4\n"
        "model: {file: net.py, function: build}\n"
        f"placement:\n  - {{layers: {layers}, ranks: [0, 1], split: batch}}\n"
        "  - {layers: fc, ranks: [0, 1], split: channel}\n"
    )
    picture, out = tmp_path / "any.png", tmp_path / "run"
    assert command("show", str(file), "--picture", str(picture)).code == 0
    assert picture.stat().st_size > 1000
    run = ("run", "--plan", str(file), "--launcher", "local", "--no-metrics", "--steps", "1",
           "--data", data, "--out", str(out))  # fmt: skip
    if message is None:
        assert command(*run).code == 0
        return
    told = refused(*run)
    assert told.startswith(f"error: --data {data}: ")
    assert message in told
    assert "--data synthetic" in told
    assert not out.exists()


def test_examples_of_more_sides_than_images_have_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from orchestrator.models import Linear, Model\n"
        "def build(): return Model('m', (1, 2, 3, 4), [Linear(name='fc', features=10)])\n"
    )
    file = tmp_path / "any.yaml"
    file.write_text(
        "schema_version: 1\nname: any\nglobal_batch_size: 4\n"
        "model: {file: net.py, function: build}\n"
        "placement:\n  - {layers: fc, ranks: [0], split: none}\n"
    )
    told = refused("show", str(file))
    assert "any.yaml:4, model.file: net.py:2: an input of 4 dimensions; allowed: (channels" in told
