"""Runs jobs one after another in a few processes joined by gloo, one thread each.

A job that raises on any rank ends the processes, for its messages may still be under way; the jobs
behind it go on in new ones.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
PEER_TIMEOUT_S = 120
JOB_TIMEOUT_S = 900


class Job(NamedTuple, Generic[T]):
    """Something that every rank runs; rank 0's result counts.

    Args:
        run: called as run(rank, argument); a function of a module, since processes are spawned.
    """

    name: str
    run: Callable[[int, T], object]
    argument: T


class Outcome(NamedTuple):
    """A job's result, or why there is none."""

    name: str
    result: object
    reason: str


def run_jobs(jobs: Sequence[Job[T]], world_size: int) -> Iterator[Outcome]:
    """Outcomes in the order of the jobs, as they come."""
    done = 0
    while done < len(jobs):
        for outcome in _run_until_one_fails(jobs[done:], world_size):
            done += 1
            yield outcome


def _run_until_one_fails(jobs: Sequence[Job[T]], world_size: int) -> Iterator[Outcome]:
    context = mp.get_context("spawn")
    results: Queue[Outcome] = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        processes = [
            context.Process(target=_work, args=(rank, world_size, store, jobs, results))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            for job in jobs:
                outcome = _next(results, job.name, processes)
                yield outcome
                if outcome.reason:
                    return
            for process in processes:
                process.join(PEER_TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _next(
    results: Queue[Outcome], name: str, processes: Sequence[mp.process.BaseProcess]
) -> Outcome:
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while time.monotonic() < deadline:
        alive = all(process.is_alive() for process in processes)
        try:
            return results.get(timeout=1)
        except queue.Empty:
            if not alive:
                return Outcome(name, None, "a process ended without a word")
    return Outcome(name, None, f"no result within {JOB_TIMEOUT_S} s")


def _root_of(error: BaseException) -> str:
    """The first line of what an exception was raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def _work(
    rank: int, world_size: int, store: Path, jobs: Sequence[Job[T]], results: Queue[Outcome]
) -> None:
    import gc

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size,
        timeout=timedelta(seconds=PEER_TIMEOUT_S),
    )  # fmt: skip
    for job in jobs:
        try:
            result = job.run(rank, job.argument)
        except Exception as error:
            results.put(Outcome(job.name, None, _root_of(error)))
            raise
        if rank == 0:
            results.put(Outcome(job.name, result, ""))
        del result
        gc.collect()
        dist.barrier()
    sys.stdout.flush()
    dist.destroy_process_group()
