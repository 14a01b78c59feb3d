"""A rank that stops (and does not end) is told by those that wait for it, in the run's timeout.

Pairs of plain processes over gloo. `dist.new_group` without a timeout once took gloo's own: a
stopped rank of a data-parallel plan kept the others for half an hour.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.train.small_runs import plan_file

TIMEOUT_S = 3
# By case: the plan, when the victim stops, the victim, and what the other rank says.
CASES: dict[str, tuple[str, str, int, str]] = {
    "all-reduce": ("data", "step", 1, "waits for rank 1 at 0ALL_REDUCE0 (ALL_REDUCE before conv1)"),
    "sharded optimizer": (
        "sharded", "step", 1, "waits for rank 1 at 0REDUCE_SCATTER0 (REDUCE_SCATTER before conv1)",
    ),
    "message": ("stages", "step", 1, "waits for rank 1 at 1RECV_B0 (RECV_B before fc2)"),
    # Rank 0 keeps the addresses of all, and its store has no timeout for what it answers.
    "connecting to rank 0": ("data", "group", 0, "waits for rank 0 to connect"),
    "connecting to rank 1": ("data", "group", 1, "waits for rank 1 to connect"),
}  # fmt: skip

# Imports torch once, and forks both ranks of every case.
RANKS = """
import json, os, signal, socket, sys, time, traceback
import torch
import torch.distributed as dist
from orchestrator.execute.torchrun_launch import run_under_torchrun
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.program.resolve import recipe_of
from orchestrator.train.worker import Job, job_of_rank, train

cases, timeout_s, folder = json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

def rank_of(number, plan, moment, stops, port):
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    new_group = dist.new_group

    def stop(*args, **more):
        os.kill(os.getpid(), signal.SIGSTOP)
        return new_group(*args, **more)

    def event(rank, kind, payload):
        if stops and kind == moment == "step" and payload.times.step == 1:
            stop()

    if stops and moment == "group":
        dist.new_group = stop
    plan = load_plan(plan)
    model = model_of(plan)
    job = Job(compile_plan(plan, model), recipe_of(plan, model), "synthetic:64", 0, 10**6)
    run_under_torchrun(train, lambda rank: job_of_rank(job, rank), timeout_s, event)

children = {}
for case, (name, moment, victim, _) in cases.items():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for number in range(2):
        pid = os.fork()
        if not pid:
            try:
                rank_of(number, f"{folder}/{name}.yaml", moment, number == victim, port)
            except BaseException as error:
                with open(f"{folder}/{case}", "w") as file:
                    file.write(str(error))
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children[pid] = (case, number == victim)
waiting = {pid for pid, (_, stops) in children.items() if not stops}
codes = {}
try:
    deadline = time.monotonic() + 100
    while waiting and time.monotonic() < deadline:
        for pid in list(waiting):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                waiting.discard(pid)
                codes[children[pid][0]] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
finally:
    for pid, (case, stops) in children.items():
        if stops or pid in waiting:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | None, str]]:
    """By case, how the rank that waits ended (None: it did not) and what it said."""
    folder = tmp_path_factory.mktemp("timeouts")
    for name in {name for name, _, _, _ in CASES.values()}:
        plan_file(folder, name)
    done = subprocess.run(
        [sys.executable, "-c", RANKS, json.dumps(CASES), str(TIMEOUT_S), str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    files = {case: folder / case for case in CASES}
    said = {case: file.read_text() if file.exists() else "" for case, file in files.items()}
    return {case: (codes.get(case), said[case]) for case in CASES}


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP on this system")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_rank_is_told_in_time(
    case: str, ended: dict[str, tuple[int | None, str]]
) -> None:
    code, said = ended[case]
    assert code == 1, "it waits on" if code is None else said
    assert f"rank {1 - CASES[case][2]} {CASES[case][3]}" in said
