"""A plan asks for a number format, and its prediction is of that format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.calibrate import measured_programs
from orchestrator.errors import InputError
from orchestrator.plan import load_plan, read_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.fit import what_would_fit
from orchestrator.simulate.predict import simulate


def predicted(cluster: str, *settings: str) -> dict[str, Any]:
    plan = load_plan("data-parallel", settings)
    return simulate(plan, model_of(plan), load_cluster(cluster)).summary


@pytest.mark.parametrize("cluster", ["dgx-a100", "dgx-h100", "h200x8"])
def test_products_in_tfloat32_are_of_float32_values(cluster: str) -> None:
    """The files gave its peak, and no plan could ask for it."""
    float32, tfloat32, float16 = (
        predicted(cluster, f"training.precision={name}")
        for name in ("float32", "tfloat32", "float16")
    )
    assert float16["compute_time_s"] < tfloat32["compute_time_s"] < float32["compute_time_s"] / 2
    for name in ("bytes_sent", "peak_memory_bytes"):
        assert tfloat32[name] == float32[name]
    # all that is sent is gradients, which are summed in float32
    assert float16["bytes_sent"] == float32["bytes_sent"]
    half = predicted(cluster, "training.precision={compute: float16, reduce: float16}")
    assert half["bytes_sent"] == float32["bytes_sent"] / 2


def test_the_older_name_says_the_same() -> None:
    older = load_plan("data-parallel", ["training.dtype=bfloat16"])
    newer = load_plan("data-parallel", ["training.precision=bfloat16"])
    assert older == newer
    assert newer.training.dtype == older.training.precision == "bfloat16"
    assert read_plan(older.to_yaml(), "copy.yaml") == newer
    assert older.to_yaml().count("bfloat16") == 1
    with pytest.raises(InputError, match=r"training\.dtype.*found float64 beside precision: bfl"):
        load_plan("data-parallel", ["training.dtype=float64", "training.precision=bfloat16"])


def test_a_device_without_the_format_says_which_it_has() -> None:
    with pytest.raises(InputError, match=re.escape("K20 has no tflops for tfloat32; it has: flo")):
        predicted("k20x8", "training.precision=tfloat32")


def test_what_would_fit_is_of_the_plans_format() -> None:
    """It was of float32, whatever the plan asked for."""
    cluster = load_cluster("dgx-a100", ["device.memory_GiB=1.45", "device.reserved_GiB=0"])
    peaks = []
    for name in ("float32", "float16"):
        plan = load_plan("data-parallel", [f"training.precision={name}"])
        first = what_would_fit(plan, model_of(plan), cluster)[0]
        peaks.append((first.settings, first.tightest.peak_bytes))
    assert peaks[0][0] == peaks[1][0]
    # activations are half as large; of a weight 14 bytes are kept, with its master, in place of 12
    assert 0.6 * peaks[0][1] < peaks[1][1] < 0.8 * peaks[0][1]


def test_calibrate_measures_float32_only(tmp_path: Path) -> None:
    """Times in another format were written down as those of float32."""
    path = tmp_path / "half.yaml"
    path.write_text(load_plan("single", ["training.precision=bfloat16"]).to_yaml())
    with pytest.raises(InputError, match=r"half\.yaml:\d+, training\.precision: calibrate meas"):
        measured_programs([str(path)], [4], 1)
