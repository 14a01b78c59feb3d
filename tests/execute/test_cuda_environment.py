"""What a worker on a GPU needs of its process, and what of it the user may change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from orchestrator.errors import InputError
from orchestrator.execute import ray_launch
from orchestrator.execute.cuda_environment import check_cuda_environment, cuda_environment
from orchestrator.execute.torchrun_launch import run_under_torchrun
from tests.execute.fake_cuda import FakeCuda, FakeDevice
from tests.execute.gpu_trace import Trace
from tests.execute.turns import Turns

LOADING, QUEUES = "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS"


def test_kernels_are_loaded_at_once_and_streams_do_not_share_queues() -> None:
    assert cuda_environment({}) == {LOADING: "EAGER", QUEUES: "32"}
    assert cuda_environment({LOADING: "LAZY", QUEUES: "8"}) == {LOADING: "EAGER", QUEUES: "8"}


@pytest.mark.parametrize("value", ["1", "7", "33", "many", "", "-8", "٨"])
def test_a_number_of_queues_that_will_not_do_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="streams that share one wait for each other") as told:
        cuda_environment({QUEUES: value})
    assert told.value.location == QUEUES
    assert told.value.remedy == f"unset {QUEUES}, or set it to 32"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({QUEUES: "32"}, f"has {LOADING} not set; it has to be EAGER"),
        ({QUEUES: "32", LOADING: "LAZY"}, f"has {LOADING}=LAZY; it has to be EAGER"),
        ({LOADING: "EAGER"}, f"has {QUEUES} not set; it has to be 32"),
    ],
)
def test_a_worker_without_them_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_cuda_environment(environment)


def test_a_worker_with_them_is_not() -> None:
    check_cuda_environment(cuda_environment({QUEUES: "16"}))


def test_ray_gives_them_to_its_workers_before_these_start(tmp_path: Path) -> None:
    job = ray_launch._Job(
        address=("127.0.0.1", 1), key=b"", use_gpu=True, threads=None, folder="/",
        import_path=(None, ()), timeout_s=1.0, environment=cuda_environment(os.environ),
    )  # fmt: skip
    trainer = ray_launch._trainer(job, 2, str(tmp_path))
    assert trainer.run_config.worker_runtime_env == {"env_vars": job.environment}


@pytest.mark.parametrize("tf32", [False, True])
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for(
    tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own default rounds in convolutions and not in products of matrices."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    gpu = FakeCuda(Trace(), Turns(1))
    monkeypatch.setattr("orchestrator.execute.device.cuda", gpu)
    with gpu.rank(0):
        FakeDevice(gpu, tf32=tf32)
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32


def test_under_torchrun_they_are_set_before_cuda_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking whether it is available starts its driver."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", QUEUES: "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(LOADING, "LAZY")
    seen: dict[str, str] = {}

    def available() -> bool:
        seen.update(os.environ)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    with pytest.raises(InterruptedError):
        run_under_torchrun(
            lambda context, argument: None, lambda rank: None, 1.0, lambda *event: None
        )
    assert (seen[LOADING], seen[QUEUES]) == ("EAGER", "9")
    monkeypatch.setenv(QUEUES, "1")
    with pytest.raises(InputError, match="'1' queues to a GPU"):
        run_under_torchrun(
            lambda context, argument: None, lambda rank: None, 1.0, lambda *event: None
        )
