"""Starts one worker per rank with Ray Train and brings what they say back to the caller.

    launch ─► ray.init ─► TorchTrainer.fit (a thread) ─► controller ─► one worker per rank
      └─ main thread: on_event ◄── WorkerLines ◄══ sockets ══ emit ◄──┘

The only module that imports ray; import it when a run is about to start, not before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray import cloudpickle

from orchestrator.errors import InputError
from orchestrator.execute.cuda_environment import cuda_environment
from orchestrator.execute.worker_context import (
    DriverLine,
    Event,
    Failure,
    Welcome,
    WorkerContext,
    WorkerDone,
    WorkerFailed,
    WorkerLines,
    WorkerUp,
    failure_from,
    first_cause,
)
from orchestrator.models.model_file import import_path, model_files

T = TypeVar("T")
OnEvent = Callable[[int, str, object], None]

DRIVER = -1  # the rank of the driver's own events
_POLL_S = 0.1
_GRACE_S = 1.0  # after a failure: how long the other ranks have to say what they saw
_CONNECT_S = 5.0
_LATE_S = 3.0  # how long freed CPUs may take to be reported as free
_SHORT_PATIENCE_S = 2.0  # the same, where ray.shutdown follows and ends what is left
_PATIENCE_S = 10.0  # after an abort: how long Ray Train has to notice

# Set for the length of a launch where the user has not set them.
_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2: the end of a run is seen that late
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; useless without restarts
    "RAY_TRAIN_METRICS_ENABLED": "0",  # we export our own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class _Job:
    """What every worker is sent."""

    address: tuple[str, int]
    key: bytes
    use_gpu: bool
    threads: int | None
    folder: str
    import_path: tuple[str | None, tuple[str, ...]]  # where functions of a model file import from
    timeout_s: float
    environment: dict[str, str]  # of the workers, before torch or CUDA start there


def launch(
    worker: Callable[[WorkerContext, T], None],
    argument_of: Callable[[int], T],
    *,
    world_size: int,
    on_event: OnEvent,
    use_gpu: bool | None = None,
    timeout_s: float = 60.0,
    threads_per_worker: int | None = None,
    address: str | None = None,
    start_timeout_s: float = 180.0,
    stop_when: Callable[[], bool] | None = None,
) -> None:
    """Runs ``worker(context, argument_of(rank))`` on `world_size` Ray Train workers and waits for
    them.

    torch.distributed's default process group is up when `worker` is called: NCCL with GPUs, else
    gloo. With RAY_ADDRESS set (as inside a Ray job) or `address` given it uses that cluster, else
    it starts a Ray of its own on this machine and ends it afterwards.

    Args:
        worker: what each rank does.
        argument_of: its second argument, asked for each rank when its worker has come up, perhaps
            in several threads at once; cloudpickled.
        world_size: number of ranks.
        on_event: called as (rank, kind, payload) in the calling thread while the run goes on;
            rank -1 for the driver's own ``("status", text)`` and, before any of a worker's,
            ``("tell", function)``: `WorkerLines.tell`, to hand a worker something.
        use_gpu: one GPU per rank; None: if the cluster has GPUs and torch here sees CUDA.
        timeout_s: how long a rank waits for a peer in torch.distributed, in seconds.
        threads_per_worker: CPU threads of a rank; None: its node's cores over its node's ranks.
        address: of a Ray cluster (``auto``, ``host:6379``).
        start_timeout_s: how long the workers may take to come up, in seconds.
        stop_when: asked some ten times a second; once true, workers see `stop_requested`.

    Raises:
        InputError: no cluster at that address, too few CPUs or GPUs, CUDA set up in a way that a
            run refuses; or a worker raised it.
        WorkerFailed: a worker raised another exception, or its process died.
        KeyboardInterrupt: SIGINT or SIGTERM came; the workers are gone by then.
    """
    if world_size < 1:
        raise InputError(f"a run needs at least one worker, not {world_size}")

    def tell(text: str) -> None:
        on_event(DRIVER, "status", text)

    with (
        _environment(),
        _quiet_raylet(),
        _sigterm_interrupts(),
        _connected(address, world_size, tell) as ours,
    ):
        use_gpu = _check_resources(world_size, use_gpu, tell)
        lines = WorkerLines(
            ray.util.get_node_ip_address(),
            lambda rank: Welcome(_pickled((worker, argument_of(rank)))),
        )
        job = _Job(
            address=lines.address,
            key=lines.key,
            use_gpu=use_gpu,
            threads=threads_per_worker,
            folder=os.getcwd(),
            import_path=import_path(),
            timeout_s=timeout_s,
            environment=cuda_environment(os.environ) if use_gpu else {},
        )
        with tempfile.TemporaryDirectory(
            prefix="orchestrator-train-", ignore_cleanup_errors=True
        ) as storage:
            fit = _Fit(job, world_size, storage)
            try:
                on_event(DRIVER, "tell", lines.tell)
                watch = _Watch(lines, fit, world_size, on_event)
                tell(f"waiting for {world_size} worker{'s' * (world_size > 1)}")
                watch.until_the_end(start_timeout_s, stop_when)
            finally:
                lines.abort()  # nothing to do where all went well
                fit.join(_SHORT_PATIENCE_S if ours else _PATIENCE_S)
                lines.close()


_PICKLING = threading.Lock()  # what is pickled by value is said for the whole process


def _pickled(value: object) -> bytes:
    """With the classes of users' model files and their neighbours by value: workers cannot import
    them."""
    with _PICKLING:
        return _pickled_by_value(value)


def _pickled_by_value(value: object) -> bytes:
    modules = {  # one file may be another's neighbour
        module.__name__: module
        for file in model_files()
        for module in (file.module, *file.from_folder().values())
    }
    for module in modules.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        payload: bytes = cloudpickle.dumps(value)
        return payload
    finally:
        for module in modules.values():
            cloudpickle.unregister_pickle_by_value(module)


class _Fit(threading.Thread):
    """`TorchTrainer.fit` in a thread, since it installs signal handlers in the main one."""

    def __init__(self, job: _Job, world_size: int, storage: str) -> None:
        super().__init__(daemon=True, name="ray-train-fit")
        self._job, self._world_size, self._storage = job, world_size, storage
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            _trainer(self._job, self._world_size, self._storage).fit()
        except Exception as error:
            self.error = error


def _trainer(job: _Job, world_size: int, storage: str) -> Any:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import RunConfig, ScalingConfig

    def train_function() -> None:
        _run_worker(job)

    return _light_trainer_class()(
        train_function,
        torch_config=TorchConfig(
            backend="nccl" if job.use_gpu else "gloo", timeout_s=max(1, round(job.timeout_s))
        ),
        scaling_config=ScalingConfig(
            num_workers=world_size,
            use_gpu=job.use_gpu,
            resources_per_worker=_resources_per_worker(job.use_gpu),
        ),
        run_config=RunConfig(
            name="run",
            storage_path=storage,
            failure_config=_one_attempt(),
            worker_runtime_env={"env_vars": job.environment},
        ),
    )


def _one_attempt() -> Any:
    """Ray Train restarts nothing, also not after a node's preemption, which it counts apart (2.60).

    The driver ends a run at the first failure; it goes on with ``--resume``, where it is counted.
    """
    from dataclasses import fields

    from ray.train.v2.api.config import FailureConfig

    limits = {"max_failures", "controller_failure_limit", "max_preemption_failures"}
    none: dict[str, Any] = {f.name: 0 for f in fields(FailureConfig) if f.name in limits}
    return FailureConfig(**none)


def _light_trainer_class() -> Any:
    """TorchTrainer without the actors that a run with fixed ranks and no Ray Data never asks.

    Each is a process that imports pandas and pyarrow first: 2 to 3 CPU seconds before a worker
    starts. These hooks are Ray's internals (2.60); where they are renamed, they are just not
    called and the run starts slower.
    """
    import ray.train.torch  # noqa: F401, I001  (first: the module below imports it in a circle)
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    unneeded = {"DatasetsCallback", "PlacementGroupCleanerCallback"}

    class FixedRanks(FixedScalingPolicy):
        """Asks no autoscaler: `_check_resources` has seen that the workers fit."""

        def _maybe_send_resource_request(self) -> None: ...
        def _send_resource_request(self) -> None: ...
        def _cancel_resource_request(self) -> None: ...

    class LightTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ not in unneeded]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            ranks: Any = self.scaling_config
            settings["scaling_policy"] = FixedRanks(scaling_config=ranks)
            return super()._initialize_and_run_controller(**settings)

    return LightTrainer


def _resources_per_worker(use_gpu: bool) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if use_gpu else {"CPU": 1}


class _Watch:
    """The driver's main loop: hands events on, collects failures, ends a run that hangs."""

    def __init__(self, lines: WorkerLines, fit: _Fit, world_size: int, on_event: OnEvent) -> None:
        self._lines, self._fit, self._on_event = lines, fit, on_event
        self._world_size = world_size
        self._up: dict[int, WorkerUp] = {}
        self._failures: list[Failure] = []
        self._started = time.monotonic()

    def until_the_end(self, start_timeout_s: float, stop_when: Callable[[], bool] | None) -> None:
        """Returns when every rank has returned, raises when one has not."""
        abort_at = fit_ended_at = float("inf")
        stopping = False
        while True:
            message = self._lines.next(_POLL_S)
            now = time.monotonic()
            if message is not None:
                self._take(message)
                if self._failures:
                    abort_at = min(abort_at, now + _GRACE_S)
                continue
            if not self._fit.is_alive():
                fit_ended_at = min(fit_ended_at, now)
                # All is delivered; or a node vanished without closing its sockets.
                if self._lines.open_lines() == 0 or now > fit_ended_at + _GRACE_S:
                    break
            if now > abort_at:
                break
            if len(self._up) < self._world_size and now > self._started + start_timeout_s:
                raise WorkerFailed(
                    DRIVER,
                    f"{len(self._up)} of {self._world_size} workers came up within "
                    f"{start_timeout_s:g} s; `ray status` tells what the cluster is doing",
                )
            if stop_when is not None and not stopping and stop_when():
                stopping = True
                self._lines.stop()
        self._raise_failures()

    def _take(self, message: object) -> None:
        match message:
            case WorkerUp():
                self._up[message.rank] = message
                if len(self._up) == self._world_size:
                    took = time.monotonic() - self._started
                    self._on_event(DRIVER, "status", f"{_where(self._up)} ({took:.1f} s)")
            case Event():
                self._on_event(message.rank, message.kind, message.payload)
            case Failure():
                self._failures.append(message)
            case WorkerDone():
                pass

    def _raise_failures(self) -> None:
        if self._failures:
            raise first_cause(self._failures).to_raise()
        error = self._fit.error
        if error is None:
            return
        for rank, cause in sorted(getattr(error, "worker_failures", {}).items()):
            raise WorkerFailed(rank, _first_line(cause), str(cause)) from None
        cause = getattr(error, "controller_failure", error)
        raise WorkerFailed(
            DRIVER, f"Ray Train could not run the workers: {_first_line(cause)}", str(cause)
        ) from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"


def _where(up: dict[int, WorkerUp]) -> str:
    nodes: dict[str, list[int]] = {}
    for rank in sorted(up):
        nodes.setdefault(up[rank].node, []).append(rank)
    parts = []
    for node, ranks in nodes.items():
        some = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
        if ranks[-1] - ranks[0] != len(ranks) - 1:
            some = "ranks " + ", ".join(map(str, ranks))
        parts.append(f"{some} on node {node}")
    devices = sorted({w.device.split(":")[0] for w in up.values()})
    return f"workers up: {'; '.join(parts)}; {'/'.join(devices)}"


# In the worker's process.


def _import_from(folder: str | None, others: tuple[str, ...]) -> None:
    """Ray hands on the driver's path as it was on connecting, when another file may have been the
    current one."""
    sys.path[:] = [path for path in sys.path if path not in others]
    if folder is not None:
        sys.path.append(folder)


def _run_worker(job: _Job) -> None:
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    rank, local_rank = context.get_world_rank(), context.get_local_rank()
    node = ray.util.get_node_ip_address()
    device = str(get_device()) if job.use_gpu else "cpu"
    hello = WorkerUp(rank, local_rank, node, device, os.getpid())
    line = DriverLine(job.address, job.key, hello, cloudpickle.dumps)
    last: Failure | WorkerDone = WorkerDone(rank)
    try:
        threads = job.threads or max(1, _cores() // context.get_local_world_size())
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):
            os.chdir(job.folder)  # where it exists on this node too
        _import_from(*job.import_path)
        worker, argument = cloudpickle.loads(line.welcome())
        worker(
            WorkerContext(
                rank=rank,
                world_size=context.get_world_size(),
                local_rank=local_rank,
                node=node,
                driver_node=job.address[0],
                device=device,
                emit=line.emit,
                stop_requested=line.stop_requested,
                listen=line.listen,
                timeout_s=job.timeout_s,
                driven=True,
            ),
            argument,
        )
    except BaseException as error:
        last = failure_from(rank, error)
        raise
    finally:
        line.end(last)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In the driver's process, around the run.


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    ours = {name: value for name, value in _TRAIN_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(ours)
    level = logging.getLogger("ray").level
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("ray").setLevel(level)
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet_raylet() -> Iterator[None]:
    """Keeps the raylet's word on every ended worker off standard output; we tell it ourselves.

    log_to_driver=False does not cover it, and Ray (2.60) has no public switch.
    """
    from ray._private import worker as ray_worker

    name = "_worker_logs_enabled"
    before = getattr(ray_worker, name, None)
    if before is not None:
        setattr(ray_worker, name, False)
    try:
        yield
    finally:
        if before is not None:
            setattr(ray_worker, name, before)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (as `ray job stop` sends it) becomes KeyboardInterrupt for the length of a run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _interrupt_on_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt_on_sigterm() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def _connected(address: str | None, world_size: int, tell: Callable[[str], None]) -> Iterator[bool]:
    """A Ray connection; ours (True) and ended afterwards unless the caller had it before."""
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        try:
            if address == "local":
                _start(world_size, options, tell)
            else:
                _attach(address, options, tell)
        except SystemExit as error:  # what Ray's own handler makes of a SIGTERM
            raise KeyboardInterrupt from error
        _interrupt_on_sigterm()  # ray.init puts its own handler there
        yield True
    finally:
        ray.shutdown()


def _start(world_size: int, options: dict[str, Any], tell: Callable[[str], None]) -> None:
    cores = os.cpu_count() or 1
    tell("starting Ray")
    if world_size > _cores():
        tell(f"{world_size} workers share {_cores()} cores: expect them to take turns")
    _keep_token_in_memory()
    ray.init(
        address="local",
        num_cpus=max(cores, world_size),
        include_dashboard=False,
        **options,
    )


def _attach(address: str, options: dict[str, Any], tell: Callable[[str], None]) -> None:
    if address.startswith(("http://", "https://", "ray://")):
        raise InputError(
            f"the Ray address {address} is not one a driver can join",
            remedy="unset RAY_ADDRESS and submit the run with `ray job submit`, or set it to "
            "the cluster's own address, as in RAY_ADDRESS=10.0.0.1:6379",
        )
    tell(f"joining the Ray cluster at {address}")
    try:
        host, colon, port = address.rpartition(":")
        if colon:  # ray.init tries for more than three minutes where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            remedy="start one with `ray start --head`, correct RAY_ADDRESS, or unset it to let "
            "the run start its own",
        ) from error


def _keep_token_in_memory() -> None:
    """Gives a Ray of our own its token in the environment instead of in ~/.ray/auth_token.

    Left to itself ray.init writes that file (since 2.60), and every later `ray start --head` of
    the user would ask for it. It stays set while the process lives, because Ray caches it.
    """
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names):
        return
    if not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_resources(world_size: int, use_gpu: bool | None, tell: Callable[[str], None]) -> bool:
    """Whether to use GPUs; raises InputError if the cluster cannot hold the workers now."""
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    if use_gpu is None:
        use_gpu = gpus >= 1 and _torch_sees_cuda()
        if gpus and not use_gpu:
            tell(f"the cluster has {gpus} GPUs, but torch here sees no CUDA: running on CPUs")
    if use_gpu and gpus < world_size:
        raise InputError(
            f"{world_size} workers need {world_size} GPUs, for NCCL refuses two ranks on one; "
            f"the cluster has {gpus}",
            remedy=f"a plan with at most {gpus} ranks, more GPUs, or --device cpu (gloo)"
            if gpus
            else "--device cpu (gloo), or nodes with GPUs",
        )
    needs = _resources_per_worker(use_gpu)
    ever = sum(_slots(node["Resources"], needs) for node in ray.nodes() if node["Alive"])
    now = min(ever, _free_slots(needs, min(ever, world_size)))
    what = "one GPU and one CPU" if use_gpu else "one CPU"
    if ever < world_size:
        raise InputError(
            f"the run needs {world_size} workers ({what} each); the cluster holds {ever} in all "
            f"and has {now} free now",
            remedy="join another node with `ray start --address=HEAD:6379`, start the head with "
            f"`ray start --head --num-cpus={world_size}` to let workers share cores, or take "
            "fewer ranks; a run can also do with `--launcher local`",
        )
    if now < world_size:
        raise InputError(
            f"the run needs {world_size} workers ({what} each); the cluster holds {ever} in all "
            f"but has {now} free now",
            remedy="wait until other jobs end (`ray status` shows them), join another node with "
            "`ray start --address=HEAD:6379`, or take fewer ranks; a run can also do with "
            "`--launcher local`",
        )
    return use_gpu


def _free_slots(needs: dict[str, float], wanted: int) -> int:
    """How many workers fit now; what a run that just ended held is reported a moment late."""
    deadline = time.monotonic() + _LATE_S
    while True:
        free = _slots(ray.available_resources(), needs)
        if free >= wanted or time.monotonic() > deadline:
            return free
        time.sleep(_POLL_S)


def _slots(resources: dict[str, float], needs: dict[str, float]) -> int:
    return min(int(resources.get(name, 0) // amount) for name, amount in needs.items())


def _torch_sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
