"""Where workers serve their metrics: on their own node, and only where the page can be read.

On another node than the driver's a worker once tried to bind the driver's address, and failed; and
the driver told Prometheus to look for it at 127.0.0.1.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from orchestrator.execute.memory_meter import MemoryMeter
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.model import Recipe
from orchestrator.observe.metrics import RunLabels
from orchestrator.observe.metrics_options import MetricsOptions, is_loopback, worker_host
from orchestrator.observe.metrics_parts import Parts
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.train.worker import Job, job_of_rank, serving_metrics
from tests.observe.timelines import PROGRAMS

LABELS = RunLabels("night", "small", "measured")
STAGES = PROGRAMS["stages"]
JOB = job_of_rank(Job(STAGES, Recipe(), "digits", 0, 1, metrics=LABELS), 1, Parts(STAGES))
# An address for documents only (RFC 5737), which no machine has; and another name for this one.
NOWHERE, HERE = "192.0.2.7", "127.0.0.2"


@pytest.mark.parametrize(
    ("host", "node", "driver_node", "found"),
    [
        ("127.0.0.1", "10.0.0.1", "10.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "10.0.0.2", "10.0.0.1", None),
        ("localhost", "10.0.0.2", "10.0.0.1", None),
        ("::1", "10.0.0.2", "10.0.0.1", None),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"),
        ("192.168.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"),
        ("head.of.the.cluster.invalid", "10.0.0.2", "10.0.0.1", "10.0.0.2"),
        ("0.0.0.0", "10.0.0.2", "10.0.0.1", "0.0.0.0"),
        ("::", "10.0.0.2", "10.0.0.1", "::"),
    ],
)
def test_a_worker_listens_at_an_address_of_its_own_machine(
    host: str, node: str, driver_node: str, found: str | None
) -> None:
    assert worker_host(host, node, driver_node) == found


def test_loopback_has_more_than_one_name() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.1.1", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", NOWHERE, "no.such.host.invalid", "a..b")))


@contextmanager
def worker(host: str, node: str, driver_node: str) -> Iterator[list[tuple[str, object]]]:
    """What a worker of rank 1 emits while it serves its metrics."""
    emitted: list[tuple[str, object]] = []
    context = WorkerContext(
        rank=1, world_size=2, local_rank=0, node=node, driver_node=driver_node, device="cpu",
        emit=lambda kind, payload: emitted.append((kind, payload)),
        stop_requested=lambda: False, listen=lambda kind, hear: None, timeout_s=60, driven=True,
    )  # fmt: skip
    with serving_metrics(context, replace(JOB, metrics_host=host), MemoryMeter(None)):
        yield emitted


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_another_nodes_worker_serves_at_its_own_address() -> None:
    with worker(NOWHERE, node=HERE, driver_node=NOWHERE) as emitted:
        ((kind, url),) = emitted
        assert kind == "metrics"
        assert str(url).startswith(f"http://{HERE}:")
        assert 'orchestrator_step_seconds_count{plan="small",rank="1"' in read(str(url))


def test_on_every_interface_a_worker_is_known_by_its_node() -> None:
    with worker("0.0.0.0", node="10.0.0.2", driver_node="10.0.0.1") as ((_, url),):
        assert str(url).startswith("http://10.0.0.2:")
    with worker("0.0.0.0", node="127.0.0.1", driver_node="127.0.0.1") as ((_, url),):
        assert "127.0.0.1" not in str(url), "nobody else would find it there"


def test_a_page_that_only_another_node_could_read_is_the_drivers() -> None:
    """From the first second, and with the values of the steps so far."""
    metrics = RunMetrics(PROGRAMS["stages"], LABELS, MetricsOptions())
    try:
        with worker("127.0.0.1", node=HERE, driver_node="127.0.0.1") as emitted:
            assert emitted == [("metrics", None)]
            assert metrics.discovery is not None
            metrics.register(1, None)
            (target,) = metrics.discovery.targets
            assert target.url == metrics.discovery.url.replace("/targets", "/ranks/1/metrics")
            part = metrics.parts.zero(1)
            metrics.ranks[1].add(replace(part, step_s=0.5))
            assert 'orchestrator_step_seconds_sum{plan="small",rank="1"' in read(target.url)
            assert "} 0.5\n" in read(target.url)
    finally:
        metrics.close()


def test_a_worker_that_cannot_serve_goes_on_and_says_so() -> None:
    """Such as in a container that is known by its host's address."""
    with worker("10.0.0.1", node=NOWHERE, driver_node="10.0.0.1") as emitted:
        (status, told), last = emitted
        assert status == "status"
        assert str(told).startswith(f"rank 1 cannot serve metrics at {NOWHERE}, port 0: ")
        assert str(told).endswith("; the driver serves them")
        assert last == ("metrics", None)
