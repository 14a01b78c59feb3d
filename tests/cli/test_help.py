"""Help comes at once, and what only describes or simulates never loads torch or Ray."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from orchestrator import __version__
from orchestrator.cli import _VERBS
from tests.cli.command import command

# Runs a call and prints, in a line of its own at the end, which of the heavy packages it loaded.
WATCHED = """
import sys
from orchestrator.cli import main
try:
    main({arguments!r})
finally:
    heavy = {{"torch", "ray", "sklearn", "PIL", "pandas"}}
    print("loaded:", *sorted(heavy & sys.modules.keys()))
"""


def loaded(*arguments: str) -> tuple[str, str]:
    """What a call in a process of its own printed, and the heavy packages it loaded."""
    code = WATCHED.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert last.startswith("loaded:")
    return out, last.removeprefix("loaded:").strip()


@pytest.mark.parametrize("verb", ["", *_VERBS])
def test_help_loads_neither_torch_nor_ray(verb: str) -> None:
    out, heavy = loaded(*verb.split(), "--help")
    assert heavy == ""
    assert out.startswith("Usage:")
    assert "--help" in out


def test_showing_and_simulating_load_neither_torch_nor_ray() -> None:
    assert loaded("show", "krizhevsky2012", "--json")[1] == ""
    arguments = ("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", "--json")
    assert loaded(*arguments)[1] == ""


def test_help_takes_less_than_a_second() -> None:
    """The quickest of three: other work on the machine only ever adds."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "orchestrator", "--help"], check=True, timeout=60)
        took.append(time.perf_counter() - started)
    assert min(took) < 1


def test_help_lists_every_verb_with_what_it_does() -> None:
    ended = command("--help")
    assert ended.code == 0
    for verb, does in _VERBS.items():
        assert f"  {verb} " in ended.out
        assert does.split()[0] in ended.out


def test_the_version_is_told() -> None:
    ended = command("--version")
    assert ended.code == 0
    assert __version__ in ended.out


def test_the_module_and_the_main_job_have_the_same_options() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "--help"], capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: python -m orchestrator.run")
    for option in ("--plan", "--data", "--steps", "--epochs", "--out", "--resume", "--launcher"):
        assert option in ended.stdout
