"""The benchmarks still run, and still refuse to compare two different networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks import peers
from benchmarks.our_side import OurRank, Setting
from benchmarks.pairing import Row, Times, check, table
from benchmarks.torch_side import single
from orchestrator.plan import load_plan

TINY = peers.Size(
    (
        "global_batch_size=4",
        "model.width=0.0625",
        "model.image_size=64",
        "model.classes=10",
    ),
    ("n_microbatches=2",),
    ("global_batch_size=4", "model.width=0.0625"),
    rounds=2,
)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_device_is_compared_with_plain_pytorch_twice() -> None:
    rows = peers.compare_single(0, TINY)
    assert [len(row.our_times.wall) for row in rows] == [2, 2, 2]
    assert all(row.loss_difference <= 1e-4 for row in rows)


@pytest.mark.usefixtures("alone")
def test_sides_that_train_differently_are_refused() -> None:
    setting = Setting(load_plan("single", TINY.network), 0)
    other = single(setting, "ours")
    for group in other.optimizer.param_groups:
        group["lr"] = 1.0
    with pytest.raises(RuntimeError, match="do not train the same network"):
        check([OurRank(setting), other])


@pytest.mark.slow
def test_two_ranks_agree_with_torch_pipelining() -> None:
    rows = peers.run(TINY, only="ZBV")
    assert [(row.theirs, row.reason) for row in rows] == [("torch ZBVZeroBubble", "")]


def test_table_shows_ratio_and_reasons() -> None:
    done = Row("a", "x", "y", Times((1, 2, 3), (2, 2, 2)), Times((2, 4, 6), (1, 1, 1)))
    text = table([done, Row("b", "", "", reason="it cannot")])
    assert "0.500  0.500-0.500      2.000" in text
    assert text.endswith("b: no figure: it cannot")
