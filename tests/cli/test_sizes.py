"""Sizes that no machine has: one message, soon, and no traceback of an allocator."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import machine
from tests.cli.command import SMALL, command, refused

LOCAL = ("--launcher", "local", "--steps", "1", "--no-metrics")
HUGE = {
    "a batch": ("global_batch_size=2147483647",),
    "a width": ("model.width=1024",),
    "classes": ("model.classes=2147483647",),
    "an image": ("model.image_size=65536",),
}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(*words: str) -> list[str]:
    return [part for word in words for part in ("--set", word)]


@pytest.mark.parametrize("words", HUGE.values(), ids=HUGE.keys())
def test_what_no_machine_holds_is_refused(words: tuple[str, ...]) -> None:
    assert command("show", "single", *settings(*words)).code == 0
    simulation = ("simulate", "--plan", "single", "--cluster", "gtx580x2")
    assert command(*simulation, *settings(*words)).code == 1
    run = ("run", "--plan", "single", *LOCAL, "--data", "synthetic")
    for call in (run, ("verify", "single", "--steps", "1")):
        message = refused(*call, *settings(*words))
        assert "GiB at least; this machine has" in message
    assert list(Path().iterdir()) == []


def test_a_network_of_a_billion_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("net.py").write_text(
        "from orchestrator.models import Conv, Linear, Model\n"
        "def net():\n"
        "    layers = [Conv(name='a', channels=10**9, kernel=3), Linear(name='b', features=10)]\n"
        "    return Model('wide', (3, 32, 32), layers)\n"
    )
    Path("plan.yaml").write_text(
        "schema_version: 1\nname: wide\nmodel: {file: net.py, function: net}\n"
        "global_batch_size: 8\nplacement:\n- {layers: a..b, ranks: [0], split: none}\n"
    )
    assert command("show", "plan.yaml").code == 0
    for call in (("verify", "plan.yaml"), ("run", "--plan", "plan.yaml", *LOCAL)):
        assert "GiB at least" in refused(*call)


def test_a_number_that_is_none() -> None:
    assert "a whole number" in refused("show", "single", *settings("global_batch_size=1e18"))
    message = refused("show", "single", *settings(f"global_batch_size={10**18}"))
    assert "2147483647" in message


def test_a_container_has_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "limit"
    monkeypatch.setattr(machine, "_LIMIT", limit)
    whole = machine.memory_bytes()
    limit.write_text("max\n")
    assert machine.memory_bytes() == whole
    limit.write_text(f"{2**20}\n")
    assert machine.memory_bytes() == 2**20
    run = ("run", "--plan", "single", *LOCAL, *SMALL)
    assert "this machine has 0.0 GiB" in refused(*run)


def test_a_lack_of_memory_that_shows_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def torch_has_none(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("orchestrator.cli.verify._verify", torch_has_none)
    assert "not enough memory" in refused("verify", "single", *SMALL)
