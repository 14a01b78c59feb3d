"""A real Prometheus follows a run over Ray: exact bytes, shares that add up, nothing afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.ledger import edges_by_kind
from orchestrator.program.resolve import model_of
from tests.prometheus_server import Prometheus, needs_prometheus, prometheus, scraping
from tests.train.small_runs import plan_file, summary

STEPS = 400  # enough for several scrapes
_DEADLINE_S = 120.0


@contextmanager
def running(plan: Path, out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, which is gone afterwards."""
    command = [sys.executable, "-m", "orchestrator.run", "--plan", str(plan), "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def described(process: subprocess.Popen[str], out: Path, targets: int) -> dict[str, Any]:
    """``metrics.json`` once it lists so many targets."""
    end = time.monotonic() + _DEADLINE_S
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if (out / "metrics.json").exists():
            found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
            if len(found["targets"]) >= targets:
                return found
        time.sleep(0.05)
    pytest.fail(f"no {targets} targets in {out / 'metrics.json'}")


def samples(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """A page by name and by (op, peer, phase) labels; of one rank."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {"run", "plan", "rank", "stage", "source"}
            key = tuple(v for k, v in sorted(sample.labels.items()) if k not in own)
            found[sample.name][key] = sample.value
    return found


def total(server: Prometheus, expr: str) -> dict[str, float]:
    """Sums by rank."""
    rows = server.query(f"sum by (rank) ({expr})")
    return {row.labels["rank"]: row.value for row in rows}


@pytest.mark.ray
@pytest.mark.timeout(300)
@needs_prometheus
def test_prometheus_reads_a_run_over_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plan, out = plan_file(tmp_path, "everything"), tmp_path / "night run"
    arguments = ("--steps", str(STEPS), "--metrics-port", "0", "--metrics-linger", "200")
    with running(plan, out, *arguments) as run:
        discovery = described(run, out, 0)["discovery_url"]
        with prometheus(tmp_path, scraping(discovery)) as server:
            _workers_tell_their_own_ranks(run, out, discovery)
            server.wait("orchestrator_steps_total", lambda rows: [r.value for r in rows] == [STEPS])
            server.wait(
                "orchestrator_step_seconds_count",
                lambda rows: [r.value for r in rows] == [STEPS, STEPS],
            )
            _the_ledger_to_the_byte(server, plan)
            _shares_add_up_to_the_step_time(server, out)
            _every_series_says_whose_it_is(server)
            run.send_signal(signal.SIGINT)  # ends the lingering, not the run: that has ended well
            text, err = run.communicate(timeout=30)
            assert (run.returncode, err) == (0, ""), text
            server.wait('{__name__=~"orchestrator_.*"}', lambda rows: rows == [])


def _workers_tell_their_own_ranks(run: subprocess.Popen[str], out: Path, discovery: str) -> None:
    found = described(run, out, 2)
    assert [target["rank"] for target in found["targets"]] == [0, 1]
    urls = [target["url"] for target in found["targets"]]
    ports = {url.split("/")[2] for url in (*urls, discovery)}
    assert len(ports) == 3, "the driver's and one for each worker"
    for url in urls:
        end = time.monotonic() + _DEADLINE_S
        while not (page := samples(url))["orchestrator_step_seconds_count"].get((), 0):
            assert time.monotonic() < end
            time.sleep(0.05)
        # A page shows whole steps only, so this holds at any moment.
        shares = ("compute", "exposed_communication", "wait", "bubble", "loading", "other")
        told = sum(sum(page[f"orchestrator_{s}_seconds_total"].values()) for s in shares)
        assert told == pytest.approx(page["orchestrator_step_seconds_sum"][()], rel=1e-6)
        assert page["orchestrator_peak_memory_bytes"][()] > 0


def _the_ledger_to_the_byte(server: Prometheus, plan: Path) -> None:
    from orchestrator.observe.metrics_parts import OP

    program = compile_plan(load_plan(plan), model_of(load_plan(plan)))
    predicted = {
        (str(edge.from_rank), OP[kind], str(edge.to_rank), edge.layer): STEPS * size
        for (edge, kind), size in edges_by_kind(program).items()
    }
    assert {op for _, op, _, _ in predicted} == {
        "send_forward", "send_backward", "reduce_scatter", "all_gather",
    }  # fmt: skip
    rows = server.query("orchestrator_sent_bytes_total")
    told = {
        (r.labels["rank"], r.labels["op"], r.labels["peer"], r.labels["layer"]): r.value
        for r in rows
    }
    assert len(rows) == len(told)
    assert told == predicted


def _shares_add_up_to_the_step_time(server: Prometheus, out: Path) -> None:
    steps = total(server, "orchestrator_step_seconds_sum")
    parts = ("compute", "exposed_communication", "wait", "bubble", "loading", "other")
    shares = [total(server, f"orchestrator_{part}_seconds_total") for part in parts]
    assert steps.keys() == {"0", "1"}
    for rank, seconds in steps.items():
        assert sum(share[rank] for share in shares) == pytest.approx(seconds, rel=0.01)
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    mean = sum(row["communication_time_s"] for row in rows)
    told = total(server, "orchestrator_communication_seconds_total")
    assert sum(told.values()) / 2 == pytest.approx(mean, rel=1e-6)
    assert server.query("orchestrator_loss")[0].value == summary(out)["loss_last"]
    assert server.query("orchestrator_images_total")[0].value == 16 * STEPS


def _every_series_says_whose_it_is(server: Prometheus) -> None:
    rows = server.query('{__name__=~"orchestrator_.*"}')
    for row in rows:
        labels = row.labels
        assert (labels["run"], labels["plan"]) == ("night run", "everything")
        assert labels["source"] == "measured"
        assert not any(name.startswith("exported_") for name in labels)
        who = f"rank {labels['rank']}" if "rank" in labels else "driver"
        assert labels["instance"] == f"night run/{who}"
    info = next(row.labels for row in rows if row.labels["__name__"] == "orchestrator_info")
    assert (info["backend"], info["device"]) == ("gloo", "cpu")
    assert info.keys() >= {"version", "torch", "ray"}
