"""Options of the verbs that give out metrics, and how they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from orchestrator.cli.terminal import echo
from orchestrator.errors import InputError
from orchestrator.observe.metrics_options import LOOPBACK, PATIENCE_S

if TYPE_CHECKING:
    from orchestrator.observe.metrics_run import RunMetrics

Command = Callable[..., Any]


def metrics_options(command: Command) -> Command:
    """Where metrics are served, for how long, and where they are pushed."""
    for option in reversed((
        click.option(
            "--metrics-port", type=click.IntRange(0, 65535),
            help="Port of the driver's metrics and of /targets; 0 for any that is free.",
        ),
        click.option(
            "--metrics-host", default=LOOPBACK, show_default=True,
            help="Address to serve metrics at; 0.0.0.0 for every interface. A worker on another "
            "node serves its own at that node's address.",
        ),
        click.option(
            "--metrics-linger", "metrics_linger_s", type=float,
            help="Seconds the last values stay readable after the run [until the next scrape, "
            f"{PATIENCE_S:g} s at most; simulate: until Ctrl-C].",
        ),
        click.option("--pushgateway", help="URL of a Pushgateway that gets the last values."),
    )):  # fmt: skip
        command = option(command)
    return command


def check(host: str, linger_s: float | None, pushgateway: str | None) -> None:
    """Refuse what cannot be meant.

    Raises:
        InputError: a time that is none, an address that is none.
    """
    if not host:  # would be every interface
        raise InputError("no address to serve metrics at", "--metrics-host", "0.0.0.0 for all")
    if linger_s is not None and not (linger_s >= 0 and math.isfinite(linger_s)):
        raise InputError(f"{linger_s} is not a number of seconds", "--metrics-linger", "30")
    if pushgateway is None:
        return
    url = urlsplit(pushgateway if "://" in pushgateway else f"http://{pushgateway}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(
            f"{pushgateway!r} is not the address of a Pushgateway",
            "--pushgateway",
            "http://localhost:9091",
        )


@contextmanager
def giving_out(metrics: RunMetrics, tell: Callable[[str], None]) -> Iterator[None]:
    """Serve what a block counts; at its end, whatever that is, push the last values.

    After a block that was not interrupted they also stay readable for a while.
    """
    try:
        try:
            yield
        finally:
            problem = metrics.push()
            if problem is not None:
                echo(f"warning: {problem}", err=True)
        metrics.linger(tell)
    finally:
        metrics.close()
