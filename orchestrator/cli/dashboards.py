"""``orchestrator dashboards``: Grafana's dashboards and what Prometheus reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.options import as_json
from orchestrator.cli.terminal import echo
from orchestrator.errors import InputError
from orchestrator.files import write_text
from orchestrator.observe.dashboards import DATA_SOURCE_NAME, shipped_dashboards, written
from orchestrator.observe.dashboards.prometheus import DISCOVERY_URLS, prometheus_files
from orchestrator.observe.grafana import Grafana, Login

data_source = click.option(
    "--data-source", default=DATA_SOURCE_NAME, show_default=True,
    help="Grafana's name for the Prometheus.",
)  # fmt: skip
force = click.option("--force", is_flag=True, help="Overwrite files that are not as we write them.")


@click.group("dashboards")
def command() -> None:
    """Watch runs in Grafana: five dashboards, and the configuration of Prometheus."""


@command.command("push")
@click.option(
    "--url", envvar="GRAFANA_URL", default="http://localhost:3000", show_default=True,
    help="Grafana's address, with the path that it is served under; or GRAFANA_URL.",
)  # fmt: skip
@click.option(
    "--prometheus", default="http://localhost:9090", show_default=True,
    help="Prometheus' address, as Grafana's server reaches it.",
)  # fmt: skip
@click.option("--folder", default="Orchestrator", show_default=True, help="Grafana's folder.")
@data_source
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=10.0,
    show_default=True, metavar="SECONDS", help="Wait so long for each answer.",
)  # fmt: skip
@as_json
def push(
    url: str, prometheus: str, folder: str, data_source: str, timeout_s: float, as_json: bool
) -> int:
    """Put everything into a Grafana, again and again.

    Creates or updates the folder, the data source and the dashboards; what is there already as it
    would be pushed stays untouched. Logs in with GRAFANA_TOKEN, or with GRAFANA_USER and
    GRAFANA_PASSWORD. Changes made to these dashboards in Grafana are overwritten; save them there
    under another name.
    """
    if not folder.strip() or not data_source.strip():
        raise InputError("a name without a letter", "--folder, --data-source", "give another name")
    dashboards = list(shipped_dashboards(data_source).values())
    changes = []
    with Grafana(url, Login.from_environment(os.environ), timeout_s) as grafana:
        for change in grafana.push(dashboards, folder, data_source, prometheus):
            changes.append(change)
            if not as_json:
                line = f"{change.change:<10} {change.kind:<12} {change.name}  {change.url}"
                echo(line.rstrip())
    if as_json:
        echo(json.dumps({"url": url, "changes": [asdict(change) for change in changes]}))
    return 0


@command.command("export")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("dashboards"), show_default=True,
    help="Folder to write to.",
)  # fmt: skip
@data_source
@force
def export(out: Path, data_source: str, force: bool) -> int:
    """Write to files what push would send."""
    dashboards = shipped_dashboards(data_source)
    _write(out, {name: written(dashboard) for name, dashboard in dashboards.items()}, force)
    return 0


@command.command("prometheus")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("prometheus"), show_default=True,
    help="Folder to write to.",
)  # fmt: skip
@click.option(
    "--discovery-url", "discovery_urls", multiple=True, default=DISCOVERY_URLS, show_default=True,
    help="Where a run or a simulation lists its ranks, as its metrics.json has it; repeatable.",
)  # fmt: skip
@force
def prometheus(out: Path, discovery_urls: tuple[str, ...], force: bool) -> int:
    """Write what Prometheus reads.

    That is the scrape configuration, recording rules for the parts of a step, and alerts.
    """
    _write(out, prometheus_files(discovery_urls), force)
    echo(f"start it with: prometheus --config.file={out / 'prometheus.yml'}")
    return 0


def _write(folder: Path, files: Mapping[str, str], force: bool) -> None:
    """All of the files or none; what somebody changed stays, unless forced."""
    try:
        here = {n: _text(folder / n) for n in files}
        edited = [n for n, text in files.items() if here[n] not in (None, text)]
        if edited and not force:
            raise InputError(
                f"not as it would be written, and not overwritten: {', '.join(edited)}",
                str(folder),
                "--force, or another --out",
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if here[name] != text:
                write_text(folder / name, text)
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror or error}"
        raise InputError(message, "--out", "a folder where you may write") from error
    for name, text in files.items():
        echo(f"{'unchanged' if here[name] == text else 'written':<10} {folder / name}")


def _text(path: Path) -> str | None:
    """What a file holds; None if there is none, or if a device or pipe is in its place."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
