"""Runs a worker function under `torchrun` instead of Ray: the process is there already.

``torchrun --nproc-per-node=2 script.py``, where script.py calls `run_under_torchrun`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from orchestrator.errors import InputError
from orchestrator.execute.cuda_environment import cuda_environment
from orchestrator.execute.worker_context import WorkerContext

T = TypeVar("T")


def run_under_torchrun(
    worker: Callable[[WorkerContext, T], None],
    argument_of: Callable[[int], T],
    timeout_s: float,
    on_event: Callable[[int, str, object], None],
) -> None:
    """Runs ``worker(context, argument_of(rank))`` as the rank that torchrun's environment names.

    The process group uses NCCL when every rank of this node has a GPU of its own, else gloo; all
    nodes must be alike in this. It is destroyed afterwards. CPU threads are as torchrun sets them.

    Args:
        worker: what each rank does.
        argument_of: gives its second argument.
        timeout_s: how long a rank waits for a peer in torch.distributed, in seconds.
        on_event: called as (rank, kind, payload) in this process, for this rank's events only.

    Raises:
        InputError: the process was not started by torchrun, or CUDA is set up in a way
            that a run refuses.
    """
    rank, world_size, local_rank, local_world_size = _ranks()
    import torch
    import torch.distributed as dist

    use_gpu = torch.cuda.device_count() >= local_world_size  # asked without starting CUDA
    if use_gpu and not torch.cuda.is_initialized():  # else the worker checks what it has
        os.environ.update(cuda_environment(os.environ))
    use_gpu = use_gpu and torch.cuda.is_available()
    node = socket.gethostname()
    device = f"cuda:{local_rank}" if use_gpu else "cpu"
    if use_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        worker(
            WorkerContext(
                rank=rank,
                world_size=world_size,
                local_rank=local_rank,
                node=node,
                driver_node=node,
                device=device,
                emit=lambda kind, payload: on_event(rank, kind, payload),
                stop_requested=lambda: False,
                listen=lambda kind, hear: None,
                timeout_s=timeout_s,
                driven=False,
            ),
            argument_of(rank),
        )
    finally:
        dist.destroy_process_group()


def _ranks() -> tuple[int, int, int, int]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InputError(
            f"not started by torchrun: {', '.join(missing)} not set",
            remedy="torchrun --nproc-per-node=2 ..., or start with Ray",
        )
    rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    return rank, world_size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
