"""Whatever a plan file holds, ``show`` prints a table or one message, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.plan import shipped, shipped_names
from orchestrator.schedules import SCHEDULES
from tests.cli.command import command

PLANS = [(shipped("partitions") / f"{n}.yaml").read_text() for n in shipped_names("partitions")]
# Values that are well-formed and wrong, or right and unusual: what the loader lets through has to
# be refused, or shown, by what comes after it.
NUMBERS = ["0", "1", "2", "3", "7", "64", "-1", "1.5", "~", "true", "10000000000"]
RANKS = ["[0]", "[1]", "[0, 1]", "[1, 0]", "0..2", "0..7", "[0, 2]", "[5]", "[]"]
SPLITS = ["none", "batch", "channel", "input", "{batch: 2, channel: 2}", "{channel: 2, input: 2}"]
LAYERS = ["conv1..fc8", "conv1", "fc6..fc8", "conv1..conv5", "relu5..drop6", "fc8..conv1", "x"]
LAYERS += ["[conv1, fc8]", "[conv1..fc7, drop7]", "all", "[all, fc8]", "[[conv1]]", "[]"]
SHARES = ["[1, 2]", "[2, 1]", "[1]", "[0, 1]", "[-1, 2]", "[1, 1, 2]", "{channel: [2, 1]}"]
SHARES += ["{batch: [1, 2], channel: [1, 1]}", "{height: 2}"]
VALUES: dict[str, list[str]] = {
    "global_batch_size": NUMBERS,
    "n_microbatches": NUMBERS,
    "replicas": NUMBERS,
    "schedule": [*SCHEDULES],
    "activation_checkpoint": ["never", "except_last", "always", "sometimes"],
    "optimizer_sharding": ["none", "zero1", "zero3"],
    "summary": ["'[/x]'", "'[bold'", "'\\n'", "'\\x1b[31m'", "''", "3"],
    "name": ["'[/x]'", "x", "''", "../x"],
    "model.name": ["alexnet2014", "alexnet2012-fourcolumns", "alexnet2012-released", "lenet5"],
    "model.width": ["0.0625", "0.01", "0", "100", "-1"],
    "model.image_size": ["64", "8", "1", "0", "100000"],
    "model.classes": NUMBERS,
    "placement.0.ranks": RANKS,
    "placement.1.ranks": RANKS,
    "placement.0.split": SPLITS,
    "placement.1.split": SPLITS,
    "placement.0.layers": LAYERS,
    "placement.1.layers": LAYERS,
    "placement.0.shares": SHARES,
    "placement.1.exchange": ["gather", "broadcast", "scatter", "x"],
    "training.layer_batch": ["{fc6..fc8: 32}", "{fc6..fc8: 5}", "{conv1: 1}", "{x: 1}", "{}"],
    "training.dtype": ["float64", "bfloat16", "int8"],
    "training.seed": NUMBERS,
}
override = st.sampled_from(sorted(VALUES)).flatmap(
    lambda key: st.sampled_from(VALUES[key]).map(lambda value: f"{key}={value}")
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "plan.yaml"


def check(path: Path, *arguments: str) -> None:
    ended = command("show", str(path), *arguments)
    assert ended.code in (0, 2)
    assert bool(ended.err) == (ended.code == 2), ended.err
    assert "Traceback" not in ended.err
    if ended.code == 2:
        assert ended.err.startswith("error: ")
        assert ended.out == ""


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(text=st.sampled_from(PLANS), overrides=st.lists(override, min_size=1, max_size=4))
def test_values_that_do_not_go_together(text: str, overrides: list[str], path: Path) -> None:
    path.write_text(text)
    check(path, *(word for o in overrides for word in ("--set", o)), *["--json"] * len(overrides))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped plan with words taken from another one, moved, doubled or lost."""
    lines = draw(st.sampled_from(PLANS)).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        other = draw(st.sampled_from(draw(st.sampled_from(PLANS)).splitlines()))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "cut", "swap"]))
        if kind == "replace":
            lines[at] = other
        elif kind == "insert":
            lines.insert(at, other)
        elif kind == "delete" and len(lines) > 1:
            del lines[at]
        elif kind == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        elif kind == "swap":
            with_ = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[with_] = lines[with_], lines[at]
    return "\n".join(lines)


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(text=mutated())
def test_lines_that_do_not_go_together(text: str, path: Path) -> None:
    path.write_text(text)
    check(path)
