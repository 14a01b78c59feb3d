"""Prediction against measurement between two hosts: ``python -m benchmarks.two_hosts [--quick]``.

Two network namespaces, joined by a cable whose bandwidth a token bucket limits, with a Ray node in
each: to Ray and gloo these are two machines. Three plans at two bandwidths, in turns with their
calibration as in ``oneself``; ``--out FOLDER`` keeps the run folders. Needs Linux and root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.oneself import Place, parsed, report, take_turns

PLANS = ("krizhevsky2012", "data-parallel", "pipeline-1f1b")
MEGABITS = (400, 1600)
HOSTS = ("orchestrator-0", "orchestrator-1")
CABLE = "orch"  # interface names: at most 15 letters
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 6391


def main(arguments: Sequence[str] = ()) -> None:
    """Both bandwidths, one table each."""
    if os.geteuid() != 0 or not shutil.which("tc"):
        print("two_hosts: skipped; it makes network namespaces, for which it needs root, ip and tc")
        return
    options = parsed(arguments, __doc__)
    turns = 4 if options.quick else 11
    with options.out as folder:
        for megabits in MEGABITS:
            with two_hosts(megabits) as place:
                rows = take_turns(Path(folder) / f"{megabits}-mbit", turns, PLANS, place)
            print(f"\ntwo hosts, {megabits} Mbit/s between them: {turns - 1} counted steps")
            report(rows)


@contextmanager
def two_hosts(megabits: int) -> Iterator[Place]:
    """A Ray cluster of two hosts; gives the place where its drivers run: the first of them."""
    with ExitStack() as stack:
        for host in HOSTS:
            run("ip", "netns", "add", host)
            stack.callback(run, "ip", "netns", "del", host)
        ends = [f"{CABLE}{i}" for i in range(2)]
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end, address in zip(HOSTS, ends, ADDRESSES, strict=True):
            run("ip", "link", "set", end, "netns", host)
            inside(host, "ip", "addr", "add", f"{address}/24", "dev", end)
            inside(host, "ip", "link", "set", end, "up")
            inside(host, "ip", "link", "set", "lo", "up")
            inside(
                host, "tc", "qdisc", "add", "dev", end, "root", "tbf", "rate", f"{megabits}mbit",
                "burst", "64kb", "latency", "50ms",
            )  # fmt: skip
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        for number, host in enumerate(HOSTS):
            stack.enter_context(ray_node(number, host, f"{CABLE}{number}", Path(folder)))
        yield Place(
            ("ip", "netns", "exec", HOSTS[0]),
            {"RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}", "RAY_AUTH_MODE": "disabled"},
        )


@contextmanager
def ray_node(number: int, host: str, interface: str, folder: Path) -> Iterator[None]:
    """One Ray node; all processes of the host end with it."""
    ray = str(Path(sys.executable).with_name("ray"))
    first = number == 0
    where = [f"--address={ADDRESSES[0]}:{PORT}"]
    if first:
        where = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
    with (folder / f"node-{number}.log").open("w") as log:
        node = subprocess.Popen(
            ["ip", "netns", "exec", host, ray, "start", "--block", "--num-cpus=1",
             f"--node-ip-address={ADDRESSES[number]}", *where],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": interface, "RAY_AUTH_MODE": "disabled",
                 "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
    try:
        time.sleep(8 if first else 5)
        if node.poll() is not None:
            raise SystemExit((folder / f"node-{number}.log").read_text())
        yield
    finally:
        for number_of_signal in (signal.SIGTERM, signal.SIGKILL):
            found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
            for pid in found.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), number_of_signal)
            time.sleep(2)
        node.wait(30)


def inside(host: str, *command: str) -> None:
    """Run a command on a host."""
    run("ip", "netns", "exec", host, *command)


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    main(sys.argv[1:])
