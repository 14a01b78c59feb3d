"""One Weird Trick's table 1, predicted: the row for one GPU calibrates, the others are judged."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.reproduce import fitted, owt_step
from orchestrator.simulate.cluster import load_cluster


def test_one_weird_trick() -> None:
    published = Path(__file__).parents[2] / "benchmarks" / "published.yaml"
    table = yaml.safe_load(published.read_text())["one_weird_trick"]
    each = table["epochs"] * table["images"] / 3600  # hours for so many images an hour
    rows = {(r["gpus"], r["batch"], r["fc_batch"]): r["hours"] / each for r in table["rows"]}
    cluster = load_cluster(table["cluster"])
    cluster = fitted(cluster, lambda c: owt_step(c, 1, 0), rows.pop((1, 128, 128)) * 128)
    errors = {}
    for (gpus, batch, fc_batch), seconds in rows.items():
        predicted = owt_step(cluster, gpus, fc_batch if fc_batch < batch else 0)
        errors[gpus, fc_batch] = predicted / batch / seconds - 1
    assert len(errors) == 6
    assert max(map(abs, errors.values())) < 0.03, errors
