"""What is refused before a worker starts, for clusters that are only said to be there."""

from __future__ import annotations

import pytest
import ray

from orchestrator.errors import InputError
from orchestrator.execute import ray_launch


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The resources of one node, all of them free; changed by the test."""
    resources = {"CPU": 8.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "available_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
    return resources


def check(world_size: int, use_gpu: bool | None) -> bool:
    return ray_launch._check_resources(world_size, use_gpu, lambda text: None)


def test_two_ranks_on_one_gpu_are_refused_with_the_reason(cluster: dict[str, float]) -> None:
    cluster["GPU"] = 1.0
    with pytest.raises(
        InputError, match="NCCL refuses two ranks on one; the cluster has 1"
    ) as told:
        check(2, True)
    assert "--device cpu" in told.value.remedy
    assert "at most 1 ranks" in told.value.remedy


def test_a_gpu_for_each_rank_is_taken(
    cluster: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster["GPU"] = 2.0
    monkeypatch.setattr(ray_launch, "_torch_sees_cuda", lambda: True)
    assert check(2, None) is True
    assert check(2, False) is False
    with pytest.raises(InputError, match="4 workers need 4 GPUs"):
        check(4, None)


def test_without_gpus_processors_are_taken(cluster: dict[str, float]) -> None:
    assert check(8, None) is False
    with pytest.raises(InputError, match="needs 9 workers .* holds 8 in all"):
        check(9, None)
