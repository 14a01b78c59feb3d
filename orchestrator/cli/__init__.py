"""The command line: one thin verb per file, loaded when it is called so that help comes at once."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import click

from orchestrator import __version__
from orchestrator.errors import InputError

_VERBS = {
    "show": "what each rank holds, computes and sends",
    "verify": "prove that a plan cannot deadlock, sends what it says, splits the network rightly",
    "run": "train, over Ray or in this process",
    "simulate": "predict a step on a cluster that need not exist",
    "compare": "plans against each other, runs against their prediction",
    "calibrate": "measure this machine or a Ray cluster, and write a cluster file",
    "dashboards": "watch runs in Grafana and Prometheus",
}


class _Verbs(click.Group):
    """Verbs are imported one at a time: `--help` must not wait for torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        command: click.Command = import_module(f"orchestrator.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="orchestrator")
def cli() -> None:
    """Write down how a network is split over devices; prove it, run it, compare it."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit 0: done and true; 1: ran, and the answer is no; 2: bad input."""
    call(cli, arguments)


def call(command: click.Command, arguments: list[str] | None, **options: Any) -> None:
    """Run a click command; bad input becomes one message on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know a plan's characters
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command.main(arguments, standalone_mode=False, **options)
    except InputError as error:
        _terminal().echo(f"error: {error}", err=True)
        code = 2
    except click.ClickException as error:
        _terminal().show_usage_error(error)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        _terminal().echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        code = 0
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise  # torch tells of a lack of memory in no class of its own
        remedy = "a smaller batch or model, or fewer ranks"
        _terminal().echo(f"error: this machine has not enough memory\n  remedy: {remedy}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _terminal() -> ModuleType:
    return import_module("orchestrator.cli.terminal")  # rich takes a moment, and help needs none
