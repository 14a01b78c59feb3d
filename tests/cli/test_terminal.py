"""What a terminal shows: names and texts of a user's files can be read and command nothing."""

from __future__ import annotations

import ast
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import terminal
from tests.cli.command import SMALL, command, refused

CLEAR, TITLE, RED = "\x1b[2J", "\x1b]0;mine\x07", "\x9b31m"
EVIL = f"{CLEAR}{TITLE}{RED}\r\u202e"
PACKAGE = Path(terminal.__file__).parents[1]


def is_quiet(text: str) -> bool:
    """Whether nothing in it commands a terminal."""
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"]


@given(st.text())
def test_nothing_that_is_shown_commands_a_terminal(text: str) -> None:
    assert is_quiet(terminal.visible(text).replace("\u200c", "").replace("\u200d", ""))


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs"])))
def test_text_that_can_be_read_stays_as_it_is(text: str) -> None:
    assert terminal.visible(text) == text


def test_emoji_that_are_joined_stay_joined() -> None:
    assert terminal.visible("\U0001f469\u200d\U0001f4bb\n") == "\U0001f469\u200d\U0001f4bb\n"


def test_texts_of_a_plan(tmp_path: Path) -> None:
    """A summary once cleared the screen and named the window."""
    summary = json.dumps(EVIL + "[/bold] done")
    ended = command("show", "single", "--set", f"summary={summary}")
    assert ended.code == 0
    assert "\\x1b[2J\\x1b]0;mine\\x07\\x9b31m\\r\\u202e[/bold] done" in ended.out
    assert is_quiet(ended.out)
    assert is_quiet(refused("show", "single", "--set", f"name={summary}"))
    assert is_quiet(refused("show", "single", "--set", f"model.name={summary}"))
    assert is_quiet(refused("show", f"plan{EVIL}"))
    assert is_quiet(refused(f"verb{EVIL}"))


def test_names_of_a_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's own marks in a name once ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("net.py").write_text(
        "from orchestrator.models import Linear, Model\n"
        "def net():\n"
        f"    return Model({EVIL + '[/red]'!r}, (1, 2, 2), [Linear(name={EVIL!r}, features=2)])\n"
    )
    Path("plan.yaml").write_text(
        "schema_version: 1\nname: own\nmodel: {file: net.py, function: net}\n"
        "global_batch_size: 8\nplacement:\n- {layers: a, ranks: [0], split: none}\n"
    )
    assert is_quiet(refused("show", "plan.yaml"))  # lists the layers that there are


def test_a_folder_in_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / f"{RED}[red]"
    options = ("--launcher", "local", "--steps", "1", "--out", str(out))
    ended = command("run", "--plan", "krizhevsky2012", *options, *SMALL)
    assert ended.code == 0
    assert is_quiet(ended.out + ended.err)
    for more in ((), ("--html", str(tmp_path / "page.html"))):
        ended = command("compare", str(out), "--cluster", "gtx580x2", *more)
        assert ended.code == 0
        assert "\\x9b31m[red]" in ended.out
        assert is_quiet(ended.out + ended.err)


def test_a_table_is_laid_out_for_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("show", "single", "--set", f"summary={json.dumps(CLEAR * 40)}")
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_command_line_prints_in_one_place_only() -> None:
    """Whatever is printed elsewhere would come raw."""
    wrong = []
    for path in (PACKAGE / "cli").glob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "click.echo", "click.secho", "Console", "sys.stdout.write",
                "sys.stderr.write",
            ):  # fmt: skip
                wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)
