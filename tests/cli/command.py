"""The command line called in this process: what it prints, and how it exits."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import pytest

from orchestrator.cli import main

# Any plan of the AlexNet family at a size for tests.
SMALL = (
    "--set", "model.width=0.0625", "--set", "model.image_size=64", "--set", "model.classes=16",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Args:
        code: what the process would exit with.
        out, err: standard output and error.
    """

    code: int
    out: str
    err: str


def command(*arguments: str) -> Ended:
    """``orchestrator ARGUMENTS``; any exception but SystemExit comes through, as a traceback would.

    Its output is of no terminal: plain lines, 80 columns.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exited,
    ):
        main(list(arguments))
    code = exited.value.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def refused(*arguments: str) -> str:
    """The one message of a call that is bad input."""
    ended = command(*arguments)
    assert ended.code == 2, (ended.code, ended.out, ended.err)
    assert "Traceback" not in ended.err
    assert ended.err.strip()
    return ended.err
