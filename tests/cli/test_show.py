"""``orchestrator show``: its JSON, the published figures, and a table for 80 columns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import show
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.program.text import parse
from tests.cli.command import command, refused

KEYS = {
    "name", "model", "world_size", "parameters", "macs_forward_per_image", "bytes_per_step",
    "gradient_bytes_per_step", "layers", "ranks", "edges",
}  # fmt: skip
LAYER_KEYS = {"name", "kind", "output_shape", "parameters", "macs", "split", "ranks"}
RANK_KEYS = {
    "rank", "parameters", "macs_forward_per_image", "activation_bytes_sent_per_step",
    "gradient_bytes_sent_per_step", "peak_memory_bytes",
}  # fmt: skip
EDGE_KEYS = {"from_rank", "to_rank", "layer", "direction", "bytes_per_step"}


def shown(*arguments: str) -> dict[str, Any]:
    ended = command("show", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_krizhevsky_2012_in_figures() -> None:
    """Shapes and counts of the paper's section 3; the sum over layers is all of them."""
    found = shown("krizhevsky2012")
    assert found["parameters"] == 60_965_224
    assert found["macs_forward_per_image"] == 724_406_816
    assert found["world_size"] == 2
    assert [row["parameters"] for row in found["ranks"]] == [32_531_112, 28_434_112]
    assert sum(row["macs_forward_per_image"] for row in found["ranks"]) == 724_406_816
    assert found["bytes_per_step"] == 60_030_976
    assert found["gradient_bytes_per_step"] == 0
    layers = {row["name"]: row for row in found["layers"]}
    assert " ".join(layers) == (
        "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 "
        "pool5 fc6 relu6 drop6 fc7 relu7 drop7 fc8"
    )
    assert layers["conv1"] == {
        "name": "conv1", "kind": "conv", "output_shape": [96, 55, 55], "parameters": 34_944,
        "macs": 105_415_200, "split": "channel", "ranks": [0, 1],
    }  # fmt: skip
    assert (layers["fc8"]["split"], layers["fc8"]["ranks"]) == ("none", [0])


def test_the_columns_talk_before_conv3_fc6_fc7_and_fc8_and_nowhere_else() -> None:
    """Values an image each way: 128 x 13 x 13, 128 x 6 x 6, 2048; fc8 is on rank 0 alone."""
    batch, itemsize = 128, 4
    each_way = {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048}
    expected = {
        (source, 1 - source, layer, direction): values * batch * itemsize
        for layer, values in each_way.items()
        for direction in ("forward", "backward")
        for source in (0, 1)
    }
    expected[1, 0, "fc8", "forward"] = expected[0, 1, "fc8", "backward"] = 2_048 * batch * itemsize
    edges = shown("krizhevsky2012")["edges"]
    found = {
        (e["from_rank"], e["to_rank"], e["layer"], e["direction"]): e["bytes_per_step"]
        for e in edges
    }
    assert len(found) == len(edges)
    assert found == expected


def test_data_parallel_sends_the_gradients_around_the_ring() -> None:
    found = shown("data-parallel")
    assert found["gradient_bytes_per_step"] == 487_721_792 == 2 * 243_860_896
    assert found["bytes_per_step"] == 0
    assert found["edges"] == []
    assert [row["gradient_bytes_sent_per_step"] for row in found["ranks"]] == [243_860_896] * 2


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_every_shipped_plan_is_told_in_the_contracts_words(name: str) -> None:
    found = shown(name)
    assert found.keys() >= KEYS
    assert found["name"] == name
    for rows, keys in (
        (found["layers"], LAYER_KEYS), (found["ranks"], RANK_KEYS), (found["edges"], EDGE_KEYS)
    ):  # fmt: skip
        assert all(row.keys() >= keys for row in rows)
    ranks = found["ranks"]
    assert [row["rank"] for row in ranks] == list(range(found["world_size"]))
    assert sum(edge["bytes_per_step"] for edge in found["edges"]) == found["bytes_per_step"]
    for rank in ranks:
        mine = [e["bytes_per_step"] for e in found["edges"] if e["from_rank"] == rank["rank"]]
        assert rank["activation_bytes_sent_per_step"] == sum(mine)
        weights_and_velocities = 2 * 4 * rank["parameters"]
        assert rank["peak_memory_bytes"] > weights_and_velocities
    sent = sum(row["gradient_bytes_sent_per_step"] for row in ranks)
    assert sent == found["gradient_bytes_per_step"]


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_the_tables_fit_80_columns_with_no_word_cut(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("show", name)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in ended.out
    for layer in shown(name)["layers"]:
        (row,) = (line for line in lines if line.split()[:2] == [layer["name"], layer["kind"]])
        assert row.split()[2] == "x".join(map(str, layer["output_shape"]))
        assert f" {layer['parameters']:,} " in row or not layer["parameters"]
        assert f" {layer['macs']:,} " in row or not layer["macs"]
        split = layer["split"]
        if isinstance(split, dict):
            split = " x ".join(f"{axis} {parts}" for axis, parts in split.items())
        assert f" {split} " in row
    found = shown(name)
    assert f"{found['parameters']:,}" in ended.out
    if found["bytes_per_step"]:
        assert f"activations: {found['bytes_per_step']:,} bytes a step" in ended.out
    if found["gradient_bytes_per_step"]:
        assert f"gradients: {found['gradient_bytes_per_step']:,} bytes a step" in ended.out
        assert ended.out.count("ring equivalent of the collectives") == 2
    else:
        assert "ring equivalent" not in ended.out


def test_ranks_that_do_not_talk_are_said_so() -> None:
    assert "No rank talks to another." in command("show", "single").out


def test_overrides_change_what_is_shown() -> None:
    found = shown("krizhevsky2012", "--set", "global_batch_size=256", "--set", "name=twice")
    assert found["name"] == "twice"
    assert found["bytes_per_step"] == 2 * 60_030_976


@pytest.mark.parametrize("text", ["[/x]", "[red]", "[link=x]y[/link]", "naïve ±", "a\\[b]"])
def test_a_summary_is_printed_as_it_is_written(text: str) -> None:
    """Square brackets are markup to the table library: ``[/x]`` once ended in a traceback."""
    ended = command("show", "single", "--set", f"summary='{text}'")
    assert ended.code == 0
    assert ended.out.splitlines()[1] == text


def test_with_a_cluster_it_says_whether_the_plan_fits() -> None:
    fits = command("show", "krizhevsky2012", "--cluster", "gtx580x2", "--json")
    assert fits.code == 0
    assert json.loads(fits.out)["fits"] is True
    large = command("show", "single", "--cluster", "gtx580x2", "--set", "global_batch_size=512")
    assert large.code == 1
    assert "rank 0 does not fit GTX 580: needs 5.6" in large.out
    assert "--set n_microbatches=" in large.err
    room = command("show", "krizhevsky2012", "--cluster", "gtx580x2", "--set", "replicas=2")
    assert room.code == 2
    assert "needs 4 ranks" in room.err


@pytest.mark.parametrize("name", ["k.svg", "k.png"])
def test_a_picture_is_drawn_beside_the_usual_answer(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    ended = command("show", "krizhevsky2012", "--json", "--picture", str(file))
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == shown("krizhevsky2012")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["k.pdf", "k", "k.svg.gz", ".svg"])
def test_a_picture_is_svg_or_png(name: str, tmp_path: Path) -> None:
    message = refused("show", "krizhevsky2012", "--picture", str(tmp_path / name))
    assert "a picture is .svg or .png" in message
    assert list(tmp_path.iterdir()) == []


def test_a_picture_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.svg").mkdir()
    before = sorted(tmp_path.iterdir())
    for path in ("none/k.svg", "file/k.png", "folder.svg"):
        message = refused("show", "krizhevsky2012", "--picture", str(tmp_path / path))
        assert f"cannot write to {tmp_path / path}: " in message
        assert sorted(tmp_path.iterdir()) == before


def test_without_a_picture_its_library_is_not_loaded() -> None:
    code = (
        "import sys; from orchestrator.cli import main\n"
        "try: main(['show', 'krizhevsky2012', '--json'])\n"
        "except SystemExit: print(*{'matplotlib', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("name", ["krizhevsky2012", "pipeline-zero-bubble", "pipeline-x-data"])
@pytest.mark.parametrize("most_rows", [64, 1])
def test_the_program_parses_back(
    name: str, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the ops and the order that a run compiles: of every rank, also where tables fold them."""
    monkeypatch.setattr(show, "MOST_ROWS", most_rows)
    ended = command("show", name, "--program")
    assert (ended.code, ended.err) == (0, "")
    plan = load_plan(name)
    program = compile_plan(plan, model_of(plan))
    assert parse(ended.out) == (program.columns, program.order)


def test_the_program_of_the_readme() -> None:
    root = Path(__file__).resolve().parents[2]
    readme = (root / "README.md").read_text()
    quoted = re.search(
        r"^```\n\$ orchestrator (show \S+ --program)\n(.*?)^```$", readme, re.M | re.S
    )
    assert quoted
    verb, plan, option = quoted[1].split()
    assert command(verb, str(root / plan), option).out == quoted[2]


def test_program_and_json_exclude_each_other() -> None:
    assert "leave one out" in refused("show", "single", "--program", "--json")


def test_a_program_that_does_not_fit_is_printed_alone() -> None:
    too_large = ("--cluster", "gtx580x2", "--set", "global_batch_size=512")
    ended = command("show", "single", "--program", *too_large)
    assert ended.code == 1
    assert parse(ended.out)
    assert "it does not fit" in ended.err


@pytest.mark.parametrize("plan", ["data-parallel", "pipeline-x-data", "columns-x-data"])
def test_folded_replicas_are_shown_as_if_each_were_compiled(
    plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than some ranks one replica is compiled; the JSON is the same to the byte."""
    call = ("show", plan, "--set", "replicas=8", "--set", "global_batch_size=1024")
    unfolded = command(*call, "--json")
    monkeypatch.setattr(show, "MOST_ROWS", 1)
    folded = command(*call, "--json")
    assert unfolded.code == folded.code == 0
    assert json.loads(folded.out) == json.loads(unfolded.out)
    found = json.loads(folded.out)
    text = command(*call).out
    assert "ranks of the first of 8 replicas" in text
    assert f"gradients: {found['gradient_bytes_per_step']:,} bytes a step" in text


@pytest.mark.timeout(60)
def test_very_many_replicas_are_shown_and_very_many_ops_refused() -> None:
    """Each once gave no answer for more than a minute."""
    many = ("--set", "replicas=524288", "--set", "global_batch_size=524288")
    assert "of 524,288 replicas" in command("show", "single", *many).out
    assert "--json lists each, and at most 65,536" in refused("show", "single", *many, "--json")
    for words in (many, ("--set", "n_microbatches=1048576", "--set", "global_batch_size=1048576")):
        for call in (("verify", "single"), ("run", "--plan", "single", "--launcher", "local")):
            assert "remedy" in refused(*call, *words)
    assert "allowed: 1,048,576" in refused("show", "pipeline-1f1b", *words)
    wide = "placement=[{layers: conv1..fc8, ranks: 0..1048575, split: batch}]"
    sizes = ("--set", "global_batch_size=2097152", "--set", "n_microbatches=2")
    assert "allowed: 1,048,576" in refused("show", "single", "--set", wide, *sizes)
