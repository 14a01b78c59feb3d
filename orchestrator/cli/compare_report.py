"""Gathers what the page of ``orchestrator compare --html`` tells."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orchestrator
from orchestrator.cli.compare_view import agreement_of
from orchestrator.observe.report.description import (
    Curve,
    Fact,
    Figure,
    OpPair,
    RankBytes,
    Report,
    ReportItem,
    Step,
)
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.compare import Item, by_network, error_ratios, paired_ops, worst_layers
from orchestrator.simulate.fit import fits
from orchestrator.simulate.memory import peak_memory
from orchestrator.simulate.sweep import BANDWIDTH, BATCH, Axis, Sweep

if TYPE_CHECKING:
    from orchestrator.cli.compare import Entry
    from orchestrator.observe.run_record import RunRecord

_CURVES = 16  # the best so many; more lines in one chart tell nobody anything
_WORST = 12


def describe(
    entries: Sequence[Entry], found: dict[str, Any], cluster: Cluster | None, sweep: Sweep | None
) -> Report:
    """Args: ``found`` is what :func:`orchestrator.simulate.compare.compare` gives for the items."""
    entry_of = {id(entry.item): entry for entry in entries}
    groups = by_network([entry.item for entry in entries])
    ordered = [entry_of[id(item)] for group in groups for item in group]
    swept = [entry.item for entry in ordered][:_CURVES]
    return Report(
        verdict=_verdict(found, ordered[0].item),
        because=tuple(line[0].upper() + line[1:] + "." for line in _because(found)),
        items=tuple(_item(entry, cluster) for entry in ordered),
        batch=_curves(swept, BATCH, sweep),
        bandwidth=_curves(swept, BANDWIDTH, sweep),
        agreement=(text := agreement_of(found)) and text[0].upper() + text[1:] + ".",
        facts=tuple(_facts(cluster)),
        figures=tuple(
            Figure(p.key, p.value, p.source) for p in (cluster.provenance if cluster else ())
        ),
    )


def _verdict(found: dict[str, Any], winner: Item) -> str:
    if len(found["networks"]) > 1:
        return "Plans of different networks, ranked within each network."
    if found["because"]:
        return f"{found['because'][0]}."
    rate = f"{winner.rate:,.1f} images a second"
    how = "was measured at" if winner.measured is not None else "is predicted to do"
    return f"{winner.name} {how} {rate}."


def _because(found: dict[str, Any]) -> list[str]:
    """What the verdict does not say yet."""
    if len(found["networks"]) == 1:
        return list(found["because"][1:])
    return [*found["because"], *(line for each in found["networks"] for line in each["because"])]


def _curves(items: Sequence[Item], axis: Axis, sweep: Sweep | None) -> tuple[Curve, ...]:
    if sweep is None:
        return ()
    curves = []
    for place, item in enumerate(items):
        points = sweep.curve(item, axis)
        base = item.plan.global_batch_size if axis == BATCH else 1.0
        x = [base * 2.0**power for power, _ in points]
        curves.append(Curve(item.name, place, x, [rate for _, rate in points]))
    return tuple(curve for curve in curves if curve.x)


def _item(entry: Entry, cluster: Cluster | None) -> ReportItem:
    item, record = entry.item, entry.record
    steps = tuple(_steps(item, record))
    predicted = item.prediction.summary if item.prediction else None
    error = None
    if predicted is not None and item.measured is not None:
        error = error_ratios(predicted, item.measured)["step_time_s"]
    both = error is not None
    processor = cluster is not None and cluster.on_processors
    memory = peak_memory(steps[-1].program, series=True, processor=processor) if steps else []
    return ReportItem(
        name=item.name,
        about=item.plan.summary or "",
        batch=item.plan.global_batch_size,
        predicted=predicted,
        measured=item.measured,
        error_ratio=error,
        fits=predicted["fits"] if predicted else None,
        steps=steps,
        pairs=tuple(_pairs(item)) if both else (),
        worst=tuple(worst_layers(item, _WORST)) if both else (),
        memory=tuple(
            RankBytes(m.rank, [i for i, _ in m.series], [n for _, n in m.series]) for m in memory
        ),
        room_bytes=(
            min(rank.usable_bytes for rank in fits(steps[-1].program, cluster, memory))
            if cluster is not None
            else None
        ),
        facts=tuple(_item_facts(entry)),
        notes=item.prediction.notes if item.prediction else (),
    )


def _steps(item: Item, record: RunRecord | None) -> Iterator[Step]:
    if record is not None and record.step is not None and item.program is not None:
        yield Step(f"Measured, step {record.step.step}", item.program, record.step)
    if item.prediction is not None:
        yield Step("Predicted", item.prediction.program, item.prediction.times)


def _pairs(item: Item) -> Iterator[OpPair]:
    assert item.prediction is not None
    program = item.prediction.program
    for i, predicted, measured in paired_ops(item):
        op = program.op(i)
        yield OpPair(str(op), op.rank, op.kind, predicted, measured)


# -- how each number was got -----------------------------------------------------------------------


def _item_facts(entry: Entry) -> Iterator[Fact]:
    item, record = entry.item, entry.record
    plan = item.plan
    yield Fact(
        "plan",
        f"{plan.name}: {item.model.name}, {plan.world_size} ranks, batch {plan.global_batch_size}, "
        f"{plan.schedule}, microbatches: {plan.n_microbatches}",
    )
    if record is not None:
        yield from _run_facts(record, item)
    if item.prediction is not None:
        program = item.prediction.program
        yield Fact(
            "predicted",
            f"by interpreting program {program.digest()} ({len(program.columns):,} ops) on the "
            f"cluster's costs; shown is step {item.prediction.times.step} of the simulation, in "
            "which ranks enter as they left the one before"
            + ("; ops of one replica, the others do the same" if program.folded else ""),
        )
    yield Fact("memory", "counted from the program: a prediction, over a run's timeline too")


def _run_facts(record: RunRecord, item: Item) -> Iterator[Fact]:
    summary = record.summary
    versions = ", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items())
    yield Fact(
        "measured",
        f"{summary['steps']} steps, ended {record.ended:%Y-%m-%d %H:%M %Z}; {versions}; launcher "
        f"{summary.get('launcher')}, data {summary.get('data')}, {summary.get('dtype')}; program "
        f"{summary.get('program')}",
    )
    text = "times are of the step of median length; a run's first step is left out"
    if record.step is not None and item.program is not None:
        text += f"; the timeline is of step {record.step.step}, ops' times are medians over steps"
    yield Fact("shown", text)
    if item.program is None:
        yield Fact(
            "timeline", "left out: this release compiles the plan to other ops than the run had"
        )


def _facts(cluster: Cluster | None) -> Iterator[Fact]:
    yield Fact("page", f"written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}")
    yield Fact(
        "versions", f"orchestrator {orchestrator.__version__}, Python {platform.python_version()}"
    )
    if cluster is None:
        yield Fact("cluster", "none was named, so nothing is predicted")
        return
    devices = ", ".join(f"{count} x {device.name}" for device, count in cluster.kinds)
    yield Fact("cluster", f"{cluster.name} ({cluster.label}): {cluster.summary or devices}")
    yield Fact("devices", f"{devices}, on {cluster.nodes} nodes")
    calibration = cluster.calibration
    if calibration is None:
        yield Fact("calibration", "none: computation is a roofline with the efficiencies below")
    else:
        versions = ", ".join(f"{k} {v}" for k, v in calibration.versions.items())
        yield Fact(
            "calibration",
            f"{calibration.date} on {calibration.hardware}, {calibration.threads} threads a rank; "
            f"{versions}; {len(calibration.layers)} layer times, {len(calibration.links)} link "
            f"times, {len(calibration.collectives)} collective times",
        )
    if assumed := cluster.assumed():
        yield Fact("assumed, without a source", ", ".join(assumed))
    yield Fact("colours", "Okabe and Ito, Color Universal Design (2008); heat maps: Cividis")
