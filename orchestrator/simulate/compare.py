"""Plans against each other, and predictions against measurements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan
from orchestrator.program.ops import COMPUTE, LANE_OF
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.predict import Prediction, simulate

QUANTITIES = (
    "step_time_s", "compute_time_s", "communication_time_s", "exposed_communication_time_s",
    "wait_time_s", "bubble_time_s", "other_time_s", "overlap_ratio", "bytes_sent", "images_per_s",
    "peak_memory_bytes",
)  # fmt: skip
PARTS = {
    "compute_time_s": "computation",
    "exposed_communication_time_s": "exposed communication",
    "wait_time_s": "waiting for peers",
    "bubble_time_s": "pipeline bubble",
    "other_time_s": "other",
}


@dataclass(frozen=True)
class Item:
    """One plan or run.

    Args:
        measured: a run's summary; None for a plan that was only simulated.
        op_seconds: a run's median duration by op id.
    """

    name: str
    plan: Plan
    model: Model
    prediction: Prediction | None = None
    measured: Mapping[str, Any] | None = None
    op_seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def best(self) -> Mapping[str, Any]:
        """What is known best: measured, else predicted."""
        if self.measured is not None:
            return self.measured
        assert self.prediction is not None
        return self.prediction.summary

    @property
    def rate(self) -> float:
        """Images a second."""
        return float(self.best["images_per_s"])


def error_ratios(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, float]:
    """Signed errors by quantity: (predicted - measured) over measured; times over the step time.

    Shares of the step that are nearly nothing would give errors of any size over themselves.
    """
    found = {}
    for name in QUANTITIES:
        p, m = predicted.get(name), measured.get(name)
        if p is None or m is None:
            continue
        is_share = name.endswith("_time_s") and name not in ("step_time_s", "compute_time_s")
        whole = measured["step_time_s"] if is_share else m
        if name == "overlap_ratio":
            found[name] = p - m
        elif whole:
            found[name] = (p - m) / whole
    return found


def compare(items: Sequence[Item], cluster: Cluster | None) -> dict[str, Any]:
    """CONTRACT's JSON of ``compare``: ranking, winner, why, errors where both are known."""
    rows, errors = [], []
    for item in items:
        predicted = item.prediction.summary if item.prediction else None
        row: dict[str, Any] = {
            "name": item.name,
            "predicted": _timing(predicted),
            "measured": _timing(item.measured),
            "error_ratio": None,
        }
        if predicted is not None and item.measured is not None:
            row["errors"] = error_ratios(predicted, item.measured)
            row["error_ratio"] = row["errors"]["step_time_s"]
            row["ops"] = op_kinds(item)
            row["worst_layers"] = worst_layers(item)
            errors.append(abs(row["error_ratio"]))
        rows.append(row)
    ranking = sorted(items, key=lambda item: -item.rate)
    both = [item for item in items if item.prediction and item.measured]
    return {
        "cluster": cluster.name if cluster else None,
        "items": rows,
        "ranking": [item.name for item in ranking],
        "winner": ranking[0].name,
        "because": because(ranking, cluster),
        "mean_absolute_error_ratio": sum(errors) / len(errors) if errors else None,
        "worst_error_ratio": max(errors) if errors else None,
        "kendall_tau": kendall_tau(both) if len(both) > 1 else None,
    }


def _timing(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {name: summary.get(name) for name in (*QUANTITIES, "ranks")}


def kendall_tau(items: Sequence[Item]) -> float:
    """Rank correlation of predicted and measured step times: 1 if every pair is in order."""
    score = pairs = 0
    for a, b in combinations(items, 2):
        assert a.prediction and b.prediction and a.measured and b.measured  # noqa: PT018
        predicted = a.prediction.summary["step_time_s"] - b.prediction.summary["step_time_s"]
        measured = a.measured["step_time_s"] - b.measured["step_time_s"]
        pairs += 1
        score += (predicted * measured > 0) - (predicted * measured < 0)
    return score / pairs


def op_kinds(item: Item) -> list[dict[str, Any]]:
    """Predicted beside measured seconds by kind of op, summed over the step and all ranks."""
    assert item.prediction is not None
    program, times = item.prediction.program, item.prediction.times
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for i, kind in enumerate(program.columns.kind):
        if i in item.op_seconds:
            sums[kind][0] += times.end[i] - times.start[i]
            sums[kind][1] += item.op_seconds[i]
    return [
        {"kind": k, "predicted_s": p, "measured_s": m, "error_ratio": (p - m) / m if m else None}
        for k, (p, m) in sums.items()
    ]


def worst_layers(item: Item, most: int = 5) -> list[dict[str, Any]]:
    """The segments and edges whose predicted seconds are furthest off, by seconds."""
    assert item.prediction is not None
    program, times = item.prediction.program, item.prediction.times
    sums: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for i, kind in enumerate(program.columns.kind):
        if i in item.op_seconds:
            segment = program.segments[program.columns.segment[i]]
            what = "computation" if LANE_OF[kind] == COMPUTE else "transfer"
            last = segment.layers[-1].name if what == "computation" else segment.reader
            name = segment.reader if last == segment.reader else f"{segment.reader}..{last}"
            sums[name, what][0] += times.end[i] - times.start[i]
            sums[name, what][1] += item.op_seconds[i]
    ordered = sorted(sums.items(), key=lambda pair: -abs(pair[1][0] - pair[1][1]))
    return [
        {"layers": name, "what": what, "predicted_s": p, "measured_s": m}
        for (name, what), (p, m) in ordered[:most]
    ]


# -- why ------------------------------------------------------------------------------------------


def because(ranking: Sequence[Item], cluster: Cluster | None) -> list[str]:
    """Why the winner wins: the deciding quantity, where it arises, what would turn the order."""
    if len(ranking) < 2:
        return []
    first, second = ranking[0], ranking[1]
    factor = first.rate / second.rate
    a, b = _per_image(first), _per_image(second)
    deciding = max(PARTS, key=lambda name: b[name] - a[name])
    more = (b[deciding] - a[deciding]) * 1e3
    lines = [
        f"{first.name} does {factor:.2f} times the images of {second.name} in a second",
        f"what decides is {PARTS[deciding]}: {second.name} spends {more:.3g} ms more of it an image"
        + _where(second, deciding),
    ]
    if cluster is not None and first.prediction and second.prediction:
        lines += _turning_points(first, second, cluster)
    return lines


def _per_image(item: Item) -> dict[str, float]:
    batch = item.plan.global_batch_size
    return {name: float(item.best[name]) / batch for name in PARTS}


def _where(item: Item, quantity: str) -> str:
    """At which layer most of a quantity arises, as far as the simulated ops tell."""
    if item.prediction is None or quantity not in (
        "compute_time_s", "exposed_communication_time_s",
    ):  # fmt: skip
        return ""
    program, times = item.prediction.program, item.prediction.times
    wants_compute = quantity == "compute_time_s"
    sums: defaultdict[str, float] = defaultdict(float)
    for i, kind in enumerate(program.columns.kind):
        if (LANE_OF[kind] == COMPUTE) == wants_compute:
            reader = program.segments[program.columns.segment[i]].reader
            sums[reader] += times.end[i] - times.start[i]
    if not sums:
        return ""
    name = max(sums, key=lambda key: sums[key])
    return f", most of it {'from' if wants_compute else 'before'} {name} on"


def _turning_points(first: Item, second: Item, cluster: Cluster) -> list[str]:
    """Batch sizes and bandwidths at which the simulated order turns, between 1/64 and 64 times."""

    def wins(scale_batch: float, scale_bandwidth: float) -> bool | None:
        changed = _with_bandwidth(cluster, scale_bandwidth)
        rates = []
        for item in (first, second):
            size = round(item.plan.global_batch_size * scale_batch)
            if size < 1:
                return None
            plan = item.plan.model_copy(update={"global_batch_size": size})
            try:
                rates.append(simulate(plan, item.model, changed).summary["images_per_s"])
            except InputError:
                return None
        return bool(rates[0] >= rates[1])

    now = wins(1, 1)
    if now is None:
        return []
    lines = []
    batch = first.plan.global_batch_size
    for what in ("batch", "bandwidth"):
        is_batch = what == "batch"
        found = [
            _first_turn(lambda x, b=is_batch: wins(x, 1) if b else wins(1, x), now, up)  # type: ignore[misc]
            for up in (True, False)
        ]
        told = [
            f"a batch of {round(batch * x)}" if is_batch else f"{x:g} times the bandwidth"
            for x in found
            if x is not None
        ]
        lines.append(
            f"the order turns at {' and at '.join(told)} (simulated)"
            if told
            else f"no {what} between 1/64 and 64 times this one turns the order (simulated)"
        )
    return lines


def _first_turn(test: Callable[[float], bool | None], now: bool, up: bool) -> float | None:
    """The first power of two in one direction at which the answer is another."""
    for power in range(1, 7):
        scale = 2.0**power if up else 0.5**power
        answer = test(scale)
        if answer is not None and answer != now:
            return scale
    return None


def _with_bandwidth(cluster: Cluster, scale: float) -> Cluster:
    if scale == 1:
        return cluster
    levels = tuple(
        replace(x, bandwidth=x.bandwidth * scale, device_bandwidth=x.device_bandwidth * scale)
        for x in cluster.network
    )
    calibration = cluster.calibration
    if calibration is not None:  # measured messages hold for the measured links only
        calibration = replace(calibration, links=(), collectives=())
    return replace(cluster, network=levels, calibration=calibration)
