"""Whatever bytes a plan file holds, loading gives a plan or one ``InputError``, nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.plan import load_plan, read_plan, shipped, shipped_names

ORIGINALS = [
    (shipped("partitions") / f"{name}.yaml").read_bytes() for name in shipped_names("partitions")
]
TYPE_SWAPS = [b"true", b"~", b"1.5", b"-1", b"'1'", b"[]", b"{}", b"[[1]]", b"{a: 1}", b".nan"]
TYPE_SWAPS += [b"1e999", b"0..3", b"9" * 400, b"*x", b"&x 1", b"!!binary x", b"<<", b'"\\ud800"']


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A shipped plan after one to four accidents."""
    lines = draw(st.sampled_from(ORIGINALS)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["delete", "double", "swap", "bytes", "type", "word", "cut"]))
        line = lines[where]
        if kind == "delete" and len(lines) > 1:
            del lines[where]
        elif kind == "double":
            lines.insert(where, line)
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[where], lines[other] = lines[other], line
        elif kind == "bytes":
            at = draw(st.integers(0, len(line)))
            lines[where] = line[:at] + draw(st.binary(max_size=4)) + line[at + 1 :]
        elif kind == "type":
            key, _, _ = line.partition(b":")
            lines[where] = key + b": " + draw(st.sampled_from(TYPE_SWAPS)) + b"\n"
        elif kind == "word":
            words = line.split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(TYPE_SWAPS))
            lines[where] = b" ".join(words)
        elif kind == "cut":
            lines[where] = line[: draw(st.integers(0, len(line)))]
    return b"".join(lines)


def check_message(error: InputError) -> None:
    """It has a remedy, can be printed anywhere, and crosses processes."""
    assert error.remedy, error
    str(error).encode("utf-8")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def check(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        plan = load_plan(path)
    except InputError as error:
        check_message(error)
    else:
        assert read_plan(plan.to_yaml()) == plan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "plan.yaml"


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(data=mutated())
def test_a_mutated_plan(data: bytes, path: Path) -> None:
    check(data, path)


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes, path: Path) -> None:
    check(data, path)


@settings(max_examples=100)
@given(
    key=st.sampled_from(["placement.0.ranks", "placement.0", "model", "training.lr", "x", ""])
    | st.text(max_size=12),
    value=st.text(max_size=12) | st.sampled_from([swap.decode() for swap in TYPE_SWAPS]),
)
def test_any_override(key: str, value: str) -> None:
    try:
        plan = load_plan("krizhevsky2012", [f"{key}={value}"])
    except InputError as error:
        check_message(error)
    else:
        assert read_plan(plan.to_yaml()) == plan
