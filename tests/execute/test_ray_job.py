"""A user's two lines: ``ray start --head``, ``ray job submit -- python -m orchestrator.run ...``.

The head gets ports and folders of its own here, so that it meets no Ray that is there already; all
else is as typed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's shell with this Python's folder on the path, and a home without Ray's token."""
    home = tmp_path_factory.mktemp("home")
    keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"
    return keep | {"PATH": path, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """A Ray head; gives the address for ``ray job submit``."""
    temporary = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets into it
    port, dashboard = free_port(), free_port()
    command = [
        RAY, "start", "--head", "--block", "--num-cpus", "2", "--port", str(port),
        "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(free_port()),
        "--temp-dir", str(temporary),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        end_group(process)
        shutil.rmtree(temporary, ignore_errors=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the head and all it started: asked first, since it has files to remove, then made to."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(4)


def wait_until_up(dashboard: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail("the head did not come up within 90 s")


def submit(
    head: str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [
        RAY, "job", "submit", "--address", head, "--",
        "python", "-m", "orchestrator.run", "--plan", "partitions/krizhevsky2012.yaml", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def test_a_submitted_job_trains_the_two_column_plan(
    head: str, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = submit(
        head, environment, "--steps", "2", "--out", str(out),
        "--set", "model.width=0.0625", "--set", "global_batch_size=16",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "joining the Ray cluster" in done.stdout
    assert "counted by the workers as predicted" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["ledger_exact"] is True


def test_a_plan_with_more_ranks_than_the_cluster_is_refused_at_once(
    head: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = submit(head, environment, "--steps", "1", "--out", str(tmp_path / "run"),
                  "--set", "replicas=4", "--set", "model.width=0.0625")  # fmt: skip
    assert done.returncode != 0
    assert "8 workers" in done.stdout
    assert "Traceback" not in done.stdout
