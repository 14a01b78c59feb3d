"""Plans against each other, and predictions against measurements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from orchestrator.models.model import Model
from orchestrator.observe.palette import SHARE_NAMES
from orchestrator.plan import Plan
from orchestrator.program.ops import COMPUTE, LANE_OF, Program
from orchestrator.simulate.assumed import assumed_behind
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.epoch import DataSet
from orchestrator.simulate.predict import Prediction
from orchestrator.simulate.sweep import BANDWIDTH, BATCH, POWERS, Axis, Sweep

QUANTITIES = (
    "step_time_s", "compute_time_s", "communication_time_s", "exposed_communication_time_s",
    "wait_time_s", "bubble_time_s", "loading_time_s", "other_time_s", "overlap_ratio",
    "bytes_sent", "images_per_s", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One plan or run.

    Args:
        measured: a run's summary; None for a plan that was only simulated.
        op_seconds: a run's median duration by op id of ``program``.
        program: what the run interpreted, every replica's ops listed; None for a plan, and for a
            run of which no op is known.
        data: that a run read; None for the data set that the network is made for.
    """

    name: str
    plan: Plan
    model: Model
    prediction: Prediction | None = None
    measured: Mapping[str, Any] | None = None
    op_seconds: Mapping[int, float] = field(default_factory=dict)
    program: Program | None = None
    data: DataSet | None = None

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


def compare(
    items: Sequence[Item], cluster: Cluster | None, sweep: Sweep | None = None
) -> dict[str, Any]:
    """The JSON of ``compare``: rankings, winner, why, errors where both are known.

    Images a second rank plans of one network only: a smaller network does more of them whatever
    its plan. So ``networks`` has a ranking for each; ``ranking`` and ``winner`` are those of the
    only one, else empty and None, and ``because`` says so.

    Args:
        sweep: what it has simulated already is used, and what is simulated here stays in it.
    """
    if sweep is None and cluster is not None:
        sweep = Sweep(cluster)
    rows, errors = [], []
    for item in items:
        predicted = item.prediction.summary if item.prediction else None
        row: dict[str, Any] = {
            "name": item.name,
            "model": item.model.name,
            "predicted": _timing(predicted),
            "measured": _timing(item.measured),
            "error_ratio": None,
            "assumed": list(_assumed(item, cluster)),
        }
        if predicted is not None and item.measured is not None:
            row["errors"] = error_ratios(predicted, item.measured)
            row["error_ratio"] = row["errors"]["step_time_s"]
            row["ops"] = op_kinds(item)
            row["worst_layers"] = worst_layers(item)
            errors.append(abs(row["error_ratio"]))
        rows.append(row)
    networks: list[dict[str, Any]] = [
        {
            "model": group[0].model.name,
            "parameters": group[0].model.parameters,
            "ranking": [item.name for item in group],
            "winner": group[0].name if len(group) > 1 else None,
            "because": because(group, sweep),
        }
        for group in by_network(items)
    ]
    alone = networks[0] if len(networks) == 1 else None
    both = [item for item in items if item.prediction and item.measured]
    return {
        "cluster": cluster.name if cluster else None,
        "items": rows,
        "networks": networks,
        "ranking": alone["ranking"] if alone else [],
        "winner": alone["ranking"][0] if alone else None,
        "because": alone["because"] if alone else [_not_ranked(networks)],
        "mean_absolute_error_ratio": sum(errors) / len(errors) if errors else None,
        "worst_error_ratio": max(errors) if errors else None,
        "kendall_tau": kendall_tau(both),
    }


def by_network(items: Sequence[Item]) -> list[list[Item]]:
    """The items of each network, most images a second first; networks in the order given."""
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        # By what its layers say: a run's own copy of a model file makes other classes.
        groups[repr(item.model.layers)].append(item)
    return [sorted(group, key=lambda item: -item.rate) for group in groups.values()]


def _not_ranked(networks: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{network['model']} ({network['parameters']:,} parameters)" for network in networks]
    return (
        f"{', '.join(names[:-1])} and {names[-1]} are different networks, which images a second do "
        "not rank"
    )


def _assumed(item: Item, cluster: Cluster | None) -> tuple[str, ...]:
    """The assumed figures that an item's predicted times rest on."""
    if cluster is None or item.prediction is None:
        return ()
    return assumed_behind(cluster, item.prediction).time


def _timing(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {name: summary.get(name) for name in (*QUANTITIES, "ranks")}


def kendall_tau(items: Sequence[Item]) -> float | None:
    """Rank correlation of predicted and measured step times: 1 if every pair is in order.

    Pairs are of one network; None if there is no pair.
    """
    score = pairs = 0
    for a, b in (pair for group in by_network(items) for pair in combinations(group, 2)):
        assert a.prediction and b.prediction and a.measured and b.measured  # noqa: PT018
        predicted = a.prediction.summary["step_time_s"] - b.prediction.summary["step_time_s"]
        measured = a.measured["step_time_s"] - b.measured["step_time_s"]
        pairs += 1
        score += (predicted * measured > 0) - (predicted * measured < 0)
    return score / pairs if pairs else None


def paired_ops(item: Item) -> Iterator[tuple[int, float, float]]:
    """(id in the predicted program, predicted, measured seconds) of every op known both ways.

    The prediction lists the first replica's ops alone, so ids differ; a rank's ops are the same in
    the same order.
    """
    assert item.prediction is not None
    if item.program is None:
        return
    times = item.prediction.times
    for predicted, measured in zip(item.prediction.program.order, item.program.order, strict=False):
        for i, run_id in zip(sorted(predicted), sorted(measured), strict=True):
            if run_id in item.op_seconds:
                yield i, times.end[i] - times.start[i], item.op_seconds[run_id]


def op_kinds(item: Item) -> list[dict[str, Any]]:
    """Predicted beside measured seconds by kind of op, summed over the step and all ranks."""
    assert item.prediction is not None
    kinds = item.prediction.program.columns.kind
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for i, predicted, measured in paired_ops(item):
        sums[kinds[i]][0] += predicted
        sums[kinds[i]][1] += measured
    return [
        {"kind": k, "predicted_s": p, "measured_s": m, "error_ratio": (p - m) / m if m else None}
        for k, (p, m) in sums.items()
    ]


def worst_layers(item: Item, most: int = 5) -> list[dict[str, Any]]:
    """The segments and edges whose predicted seconds are furthest off, by seconds."""
    assert item.prediction is not None
    program = item.prediction.program
    sums: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for i, predicted, measured in paired_ops(item):
        is_compute = LANE_OF[program.columns.kind[i]] == COMPUTE
        what = "computation" if is_compute else "transfer"
        reader = program.reader(i)
        last = program.segment_of(i).layers[-1].name if is_compute else reader
        name = reader if last == reader else f"{reader}..{last}"
        sums[name, what][0] += predicted
        sums[name, what][1] += measured
    ordered = sorted(sums.items(), key=lambda pair: -abs(pair[1][0] - pair[1][1]))
    return [
        {"layers": name, "what": what, "predicted_s": p, "measured_s": m}
        for (name, what), (p, m) in ordered[:most]
    ]


# -- why ------------------------------------------------------------------------------------------


def because(ranking: Sequence[Item], sweep: Sweep | None) -> list[str]:
    """Why the winner wins: the deciding quantity, where it arises, what would turn the order."""
    if len(ranking) < 2:
        return []
    first, second = ranking[0], ranking[1]
    names = [item.name for item in (first, second)]
    if (first.measured is None) != (second.measured is None):  # say so, they are not alike
        names = [
            f"{x.name} ({'predicted' if x.measured is None else 'measured'})" for x in ranking[:2]
        ]
    factor = first.rate / second.rate
    a, b = _per_image(first), _per_image(second)
    deciding = max(SHARE_NAMES, key=lambda name: b[name] - a[name])
    more = (b[deciding] - a[deciding]) * 1e3
    shown = f"{factor:.2f}" if factor >= 1.05 else f"{factor:.4f}"
    lines = [
        f"{names[0]} does {shown} times the images of {names[1]} in a second",
        f"what decides is {SHARE_NAMES[deciding]}: {second.name} spends {more:.3g} ms more of it "
        "an image" + _where(second, deciding),
    ]
    if sweep is not None and first.prediction and second.prediction:
        lines += _turning_points(first, second, sweep)
    return lines


def _per_image(item: Item) -> dict[str, float]:
    batch = item.plan.global_batch_size
    return {name: float(item.best[name]) / batch for name in SHARE_NAMES}


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
            sums[program.reader(i)] += times.end[i] - times.start[i]
    if not sums:
        return ""
    name = max(sums, key=lambda key: sums[key])
    return f", most of it {'from' if wants_compute else 'before'} {name} on"


def _turning_points(first: Item, second: Item, sweep: Sweep) -> list[str]:
    """Batch sizes and bandwidths at which the simulated order turns, between 1/64 and 64 times."""

    def wins(axis: Axis, power: int) -> bool | None:
        a, b = (sweep.images_per_s(item, axis, power) for item in (first, second))
        return None if a is None or b is None else a >= b

    now = wins(BATCH, 0)
    if now is None:
        return []
    lines = []
    batch = first.plan.global_batch_size
    for axis in (BATCH, BANDWIDTH):
        told = []
        for nearest_first in (POWERS[7:], POWERS[5::-1]):  # upwards, downwards
            power = next((p for p in nearest_first if wins(axis, p) is (not now)), None)
            if power is not None:
                times = f"{2**power} times" if power > 0 else f"1/{2**-power} of"
                is_batch = axis == BATCH
                told.append(
                    f"a batch of {round(batch * 2.0**power)}"
                    if is_batch
                    else f"{times} the bandwidth"
                )
        lines.append(
            f"the order turns at {' and at '.join(told)} (simulated)"
            if told
            else f"no {axis} between 1/64 and 64 times this one turns the order (simulated)"
        )
    return lines
