"""The benchmark of exporting still measures what it says."""

from __future__ import annotations

import pytest

from benchmarks import exporting
from benchmarks.peers import Size

TINY = Size(
    ("global_batch_size=4", "model.width=0.0625", "model.image_size=64", "model.classes=10"),
    (),
    (),
    rounds=1,
)


@pytest.mark.slow
def test_both_sides_train_the_same_and_the_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "READ_EVERY_S", 0.0)
    (row,), reads = exporting.run(TINY)
    assert row.reason == ""
    assert (row.ours, row.theirs) == ("exporting", "not exporting")
    assert len(row.our_times.wall) == len(row.their_times.wall) == exporting.TIMES_AS_MANY
    assert row.loss_difference == 0
    assert reads >= 1
