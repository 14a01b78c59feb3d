"""Networks and placements that cannot be: one message with place and remedy, exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import command, refused

CHAIN = 'Conv(name="c1", channels=4, kernel=3, padding=1)'
END = 'GlobalAveragePool(name="pool"), Linear(name="fc", features=4)'
ALL = ("layers: all, ranks: [0], split: none",)
HEAD = """from dataclasses import dataclass
from orchestrator.models import *

"""
OWN = """@dataclass(frozen=True, kw_only=True)
class Own(Layer):
    kind = "own"

"""


def plan(
    folder: Path,
    layers: str,
    entries: tuple[str, ...] = ALL,
    *,
    shape: str = "(3, 8, 8)",
    more: str = "",
    own: str = "",
) -> str:
    """A plan of a model file whose network is these layers; ``own`` are methods of a kind Own."""
    kind = OWN + own + "\n\n" if own else ""
    (folder / "net.py").write_text(
        f"{HEAD}{kind}def build():\n    return Model('net', {shape}, [{layers}])\n"
    )
    placement = "".join(f"- {{{entry}}}\n" for entry in entries)
    file = folder / "own.yaml"
    file.write_text(
        "schema_version: 1\nname: own\nmodel: {file: net.py, function: build}\n"
        f"global_batch_size: 4\nplacement:\n{placement}{more}"
    )
    return str(file)


def check(told: str, place: str, message: str, remedy: str) -> None:
    first, *rest = told.splitlines()
    assert first.startswith("error: ")
    assert place in first
    assert message in first
    assert rest == [line for line in rest if line.startswith("  remedy: ")]
    assert len(rest) == 1
    assert remedy in rest[0]


IN_FILE = "own.yaml:3, model.file: net.py:5: "
NETWORKS = {
    "a cycle": (
        f'{CHAIN}, Add(name="s", inputs=("c1", "r2")), Conv(name="c2", channels=4, kernel=1), '
        f'ReLU(name="r2"), {END}',
        "a cycle: s reads r2, r2 reads c2, c2 reads s",
        "name a layer before s in its inputs, such as c1",
    ),
    "a layer that reads itself": (
        f'{CHAIN}, ReLU(name="r", inputs=("r",)), {END}',
        "layer r reads itself", "name a layer before r in its inputs, such as c1",
    ),
    "an input that does not exist": (
        f'{CHAIN}, ReLU(name="r", inputs=("trunk",)), {END}',
        "layer r reads 'trunk', which does not exist; before it are: input, c1", "such as c1",
    ),
    "an input that is nearly one": (
        f'{CHAIN}, ReLU(name="relu1"), ReLU(name="r", inputs=("rleu1",)), {END}',
        "layer r reads 'rleu1', which does not exist", "did you mean relu1?",
    ),
    "an input that comes later": (
        f'{CHAIN}, Add(name="s", inputs=("c1", "r")), ReLU(name="r", inputs=("c1",)), {END}',
        "layer s reads r, which comes later", "put r before s",
    ),
    "shapes that do not add": (
        f'{CHAIN}, Conv(name="c2", channels=8, kernel=3), Add(name="s", inputs=("c1", "c2")), '
        f"{END}",
        "layer s: it adds two or more values of one shape, found 4x8x8, 8x6x6",
        "a projection (a Conv of kernel 1)",
    ),
    "shapes that do not multiply": (
        f'{CHAIN}, Linear(name="gate", features=3), Multiply(name="s", inputs=("c1", "gate")), '
        f"{END}",
        "layer s: it multiplies two values of one shape, or an image and a factor for each of its",
        "a layer with 4 channels as the second input",
    ),
    "towers of other sizes": (
        f'{CHAIN}, Conv(name="c2", channels=8, kernel=3), Concat(name="s", inputs=("c1", "c2")), '
        f"{END}",
        "layer s: it puts together two or more values that differ in their channels only",
        "give every tower one height and width",
    ),
}  # fmt: skip
SEQUENCES = {
    "a tie of unlike shapes": (
        'Embedding(name="e", vocabulary=7, features=4), '
        'Linear(name="head", features=6, tied="e.weight", bias=None)',
        "head.weight, (6, 4), is tied to e.weight, which is (7, 4); allowed: one of the same",
        "sizes of head that give it the other's shape",
    ),
    "a tie to nothing": (
        'Embedding(name="e", vocabulary=7, features=4), '
        'Linear(name="head", features=7, tied="embedding.weight", bias=None)',
        "is tied to embedding.weight, which is no parameter of the model", "tie it to e.weight",
    ),
    "heads that do not divide": (
        'Embedding(name="e", vocabulary=7, features=8), '
        'Attention(name="a", heads=3, inputs=("e", "e", "e")), Linear(name="head", features=7)',
        "layer a: 8 channels of the queries do not divide into 3 heads", "heads that divide",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*NETWORKS, *SEQUENCES])
def test_a_network_that_cannot_be(case: str, tmp_path: Path) -> None:
    layers, message, remedy = (NETWORKS | SEQUENCES)[case]
    shape = "(3, 8, 8)" if case in NETWORKS else "(7,)"
    check(refused("verify", plan(tmp_path, layers, shape=shape)), IN_FILE, message, remedy)


TOWERS = (
    f'{CHAIN}, ReLU(name="a"), Conv(name="b1", channels=4, kernel=1, inputs=("c1",)), '
    f'ReLU(name="b"), Concat(name="join", inputs=("a", "b")), {END}'
)
NORM = f'{CHAIN}, BatchNorm(name="bn", group=4), {END}'
TEXT = (  # 7 tokens; a bias starts at 0.1, since nothing but rounding moves that of the keys
    'Embedding(name="e", vocabulary=7, features=8), '
    + "".join(f'Linear(name="{x}", features=8, bias=0.1, inputs=("e",)), ' for x in "qkv")
    + 'Attention(name="a", heads=4, causal=True, inputs=("q", "k", "v")), '
    'Linear(name="head", features=8)'
)
TORN = "it has 4 heads of 2 channels, and each is computed by one rank"
# layers, entries, further lines, place, message, remedy
PLACEMENTS: dict[str, tuple[str, tuple[str, ...], str, str, str, str]] = {
    "an axis that a layer lacks": (
        f"{CHAIN}, {END}", ("layers: all, ranks: [0, 1], split: height",), "",
        "own.yaml:6, placement[0].split: ",
        "pool cannot be split by height: its output has no height; allowed: batch or channel",
        "place pool in an entry of its own, with split: channel or none",
    ),
    "an axis of other networks, in a grid": (
        f"{CHAIN}, {END}", ("layers: all, ranks: 0..3, split: {batch: 2, token: 2}",), "",
        "own.yaml:6, placement[0].split: ",
        "c1 cannot be split by token: its output has no token; allowed: batch, channel, height or "
        "width",
        "with split: channel or none",
    ),
    "a group of batch norm in two microbatches": (
        NORM, ALL, "n_microbatches: 2\n", "own.yaml:6, placement[0]: ",
        "bn: its statistics are over groups of 4 examples, which microbatches or turns of 2 tear",
        "n_microbatches: 1, without turns",
    ),
    "a group of batch norm in two replicas": (
        NORM, ALL, "replicas: 2\n", "own.yaml:6, placement[0]: ",
        "bn: its statistics are over groups of 4 examples, which replicas of 2 tear apart",
        "split: batch in place of replicas",
    ),
    "a group of batch norm that the batch does not hold": (
        NORM.replace("group=4", "group=3"), ALL, "", "own.yaml:6, placement[0]: ",
        "bn: its statistics are over groups of 3 examples, which do not divide the batch of 4",
        "a global_batch_size that is a multiple of 3",
    ),
    "ranks that tear a head": (
        TEXT, ("layers: all, ranks: 0..7, split: channel",), "",
        "own.yaml:6, placement[0].split: ", TORN, "a number of ranks that divides 4",
    ),
    "shares that tear a head": (
        TEXT, ("layers: all, ranks: 0..3, split: {channel: 2, token: 2}, "
               "shares: {channel: [5, 3]}",), "",
        "own.yaml:6, placement[0].shares: ", TORN, "shares that add up to 4",
    ),
    "more ranks than tokens": (
        TEXT, ("layers: all, ranks: 0..7, split: token",), "",
        "own.yaml:6, placement[0].ranks: ", "nothing is left for rank 0", "fewer ranks, such as 7",
    ),
    "shares that leave nothing": (
        TEXT, ("layers: all, ranks: 0..2, split: token, shares: [20, 1, 20]",), "",
        "own.yaml:6, placement[0].ranks: ", "nothing is left for rank 1", "less unequal",
    ),
    "a tower left out": (
        TOWERS, ("layers: c1..a, ranks: [0], split: none",
                 "layers: join..fc, ranks: [0], split: none"), "",
        "own.yaml:5, placement: ", "layers without a rank: b1..b",
        "add - {layers: b1..b, ranks: [0], split: none} before placement[1]",
    ),
    "a tower that joins before it is placed": (
        TOWERS, ("layers: c1..a, ranks: [0], split: none",
                 "layers: join..fc, ranks: [0], split: none",
                 "layers: b1..b, ranks: [0], split: none"), "",
        "own.yaml:7, placement[1].layers: ", "join reads b, which placement[2] places later",
        "move placement[2] before placement[1]",
    ),
    "two entries that read from each other": (
        TOWERS, ("layers: [c1..a, join..fc], ranks: [0], split: none",
                 "layers: b1..b, ranks: [1], split: none"), "",
        "own.yaml:6, placement[0].layers: ", "join reads b, which placement[1] places later",
        "move join and what reads it into an entry behind placement[1]",
    ),
    "a layer in two texts of a list": (
        TOWERS, ("layers: [c1..b, b1..fc], ranks: [0], split: none",), "",
        "own.yaml:6, placement[0].layers[1]: ",
        "'b1..fc' names b1, which 'c1..b' in the same list names already", "leave b1 out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACEMENTS)
def test_a_placement_that_cannot_be(case: str, tmp_path: Path) -> None:
    layers, entries, more, place, message, remedy = PLACEMENTS[case]
    shape = "(7,)" if layers == TEXT else "(3, 8, 8)"
    file = plan(tmp_path, layers, entries, shape=shape, more=more)
    check(refused("verify", file), place, message, remedy)


def passes(file: str) -> bool:
    ended = command("verify", file, "--json")
    assert ended.code == 0, ended.err
    return bool(json.loads(ended.out)["plans"][0]["passed"])


def test_the_remedies_are_plans_that_verify(tmp_path: Path) -> None:
    first, last = (
        "layers: c1..a, ranks: [0], split: none",
        "layers: join..fc, ranks: [0], split: none",
    )
    assert passes(plan(tmp_path, TOWERS, (first, "layers: b1..b, ranks: [0], split: none", last)))
    both = ("layers: [c1..a, b1..b], ranks: [0, 1], split: channel", last)
    assert passes(plan(tmp_path, TOWERS, both))
    alone = (
        "layers: c1, ranks: [0, 1], split: height",
        "layers: pool..fc, ranks: [0, 1], split: none",
    )
    assert passes(plan(tmp_path, f"{CHAIN}, {END}", alone))


@pytest.mark.parametrize(
    "entry",
    [
        "ranks: 0..2, split: token",
        "ranks: 0..6, split: token",
        "ranks: 0..2, split: token, shares: [4, 1, 2]",
        "ranks: 0..3, split: {token: 2, channel: 2}, shares: {token: [5, 2], channel: [3, 1]}",
    ],
)
def test_a_causal_network_may_be_cut_into_odd_lengths(entry: str, tmp_path: Path) -> None:
    """Seven tokens: 2, 2, 3; one each; 4, 1, 2; and 5 and 2 of three heads and one."""
    assert passes(plan(tmp_path, TEXT, (f"layers: all, {entry}",), shape="(7,)"))


def test_a_rank_may_hold_no_weights(tmp_path: Path) -> None:
    """The check of memory once ended in a KeyError: 'parameters'."""
    entries = (
        "layers: c1, ranks: [0], split: none", "layers: a, ranks: [1], split: none",
        "layers: b1..fc, ranks: [0], split: none",
    )  # fmt: skip
    assert passes(plan(tmp_path, TOWERS, entries))


KINDS = {
    "an output that is none": (
        "    def output(self, *inputs):\n        return (4, 8, 8)\n", "its output gives (4, 8, 8)",
        "return Value((4, 8, 8), ('channel', 'height', 'width'))",
    ),
    "a size of nothing": (
        "    def output(self, *inputs):\n        return Value((0, 8, 8), inputs[0].axes)\n",
        "output of (4, 8, 8): found (0, 8, 8)", "a larger input, or an output",
    ),
    "a wrong shape": (
        "", "2, 8, 8) in torch.float64; allowed: (",
        "the sizes of part.output_shape, or an output and reads that say these",
    ),
    "a box outside of its input": (
        "    def reads(self, sized, out):\n        channels, height, width = out\n"
        "        return ((channels, ((0, 9),), width),)\n",
        "reads gives ((((0, 4),), ((0, 9),), ((0, 8),)),); allowed: for each input (4x8x8) a box",
        "return (out,) where it needs the same places",
    ),
    "boxes of two inputs": (
        "    def reads(self, sized, out):\n        return (out, out)\n", "reads gives ((((0, 4),)",
        "return (out,) where it needs the same places",
    ),
    "a memory that is a number": (
        "    def output(self, *inputs):\n        return Value((2, 8, 8), inputs[0].axes)\n"
        "    def reads(self, sized, out):\n        return (sized.inputs[0].whole,)\n"
        "    def memory(self, part, examples, itemsize):\n        return 3\n",
        "its memory gives 3; allowed: LayerMemory", "give that, or leave memory out of Own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_a_kind_that_says_what_cannot_be(case: str, tmp_path: Path) -> None:
    method, message, remedy = KINDS[case]
    compute = "\n    def compute(self, part, inputs, parameters, draw):\n        "
    own = f"{method}{compute}return inputs[0][:, :2]\n"
    file = plan(tmp_path, f'{CHAIN}, Own(name="mine"), {END}', own=own)
    told = refused("verify", file)
    assert "layer mine" in told
    assert message in " ".join(told.split())
    assert remedy in " ".join(told.split("remedy: ")[1].split())
    assert told.count("error: ") == 1
