"""A program on a cluster: how long a step takes, and why; whether it fits; what it costs."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.observe.accounting import Account, Accountant, summarise
from orchestrator.observe.timeline import StepTimes, from_zero
from orchestrator.plan import Plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.precision import precision_of
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.engine import Engine
from orchestrator.simulate.epoch import DataSet, usual_data
from orchestrator.simulate.fit import fits
from orchestrator.simulate.images import host_copies
from orchestrator.simulate.memory import RankMemory, peak_memory
from orchestrator.simulate.network import Topology
from orchestrator.simulate.processors import DRAWS
from orchestrator.simulate.replicas import classes

# Ranks leave a step at different times and run on into the next, so the first step, which all enter
# together, is not like the others; the second one is.
STEADY = 2


@dataclass(frozen=True)
class Prediction:
    """One simulated step.

    Args:
        summary: times and bytes under the names that a run's summary has, totals and by rank; the
            epoch, what it costs, and whether the plan fits.
        notes: what the cost model had to assume.
    """

    program: Program
    times: StepTimes
    account: Account
    memory: tuple[RankMemory, ...]
    summary: dict[str, Any]
    notes: tuple[str, ...]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for circles. Millions of small objects are made here, no circle is,
    and it would go through all of them again and again: a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def simulate(
    plan: Plan,
    model: Model,
    cluster: Cluster,
    steps: int = STEADY,
    *,
    data: DataSet | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> Prediction:
    """Compile a plan and run some steps of it on the simulator's clock.

    Args:
        steps: how many; the last one is what is told of.
        data: what is loaded, which counts where that takes time from computing, and what an epoch
            is of; None for the data set that a network of this shape is made for.
        jitter: standard deviation of every computation's time over its mean.
        seed: of the jitter; the same one gives the same times.

    Raises:
        InputError: the plan is wrong, or needs more ranks than the cluster has; a jitter that is
            no fraction.
    """
    begun = time.perf_counter()
    cluster.check_room(plan.world_size, plan.location(("placement",)))
    program = compile_plan(plan, model, dtype=precision_of(plan), fold=True)
    return simulate_program(program, cluster, begun, steps, data=data, jitter=jitter, seed=seed)


@_no_collection()
def simulate_program(
    program: Program,
    cluster: Cluster,
    begun: float | None = None,
    steps: int = STEADY,
    *,
    data: DataSet | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> Prediction:
    """Run some steps of a compiled program on the simulator's clock; see :func:`simulate`."""
    if not 0 <= jitter <= 10 or not 0 <= seed < 2**64:
        raise InputError(
            f"found jitter {jitter}, seed {seed}; allowed: a relative standard deviation from 0 "
            "to 10, and a whole number from 0 to 2^64 - 1",
            remedy="--jitter 0.02 --seed 0",
        )
    begun = time.perf_counter() if begun is None else begun
    shared_by = program.ranks_per_replica if program.folded else 0
    topology = Topology(cluster, shared_by)
    data = data or usual_data(program.model)
    costs = CostModel(program, cluster, topology, data.kind)
    engine = Engine(program, topology, costs, host_copies(program, topology))
    begin: list[float] = []
    for _ in range(1, steps):
        begin = engine.finish(begin)
    accountant = Accountant(program)
    # where a calibration has seen jitter, the step of median length is told of
    played = [engine.run(begin)]
    for _ in range(1, DRAWS if costs.jitter else 1):
        played.append(engine.run([played[-1].finish[rank] for rank in program.ranks]))
    accounts = {id(times): accountant.account(times) for times in played}
    ordered = sorted(played, key=lambda times: accounts[id(times)].step_time_s)
    times = ordered[(len(ordered) - 1) // 2]
    times.step = steps - 1
    mean, of_replicas = None, {}
    if jitter or len(set(classes(program, cluster))) > 1:
        from orchestrator.simulate.unequal import Jitter, run_unequal  # numpy takes 0.1 s to import

        covers = engine.covers if len(played) == 1 else {}  # of several, not of the one told of
        unequal = run_unequal(
            program, engine.graph, times, costs, accountant, steps, Jitter(jitter, seed), covers
        )
        times, account = from_zero(unequal.times), unequal.account
        mean, of_replicas = unequal.mean, unequal.summary()
    else:
        account = accounts[id(times)]
    memory = tuple(peak_memory(program, processor=cluster.on_processors))
    peaks = {m.rank: m.peak_bytes for m in memory}
    summary = summarise(accountant, [account], peaks, mean)
    summary |= _prices(program, cluster, summary["step_time_s"], data)
    summary |= of_replicas
    summary["fits"] = all(rank.fits for rank in fits(program, cluster, memory))
    summary["simulate_wall_s"] = time.perf_counter() - begun
    notes = [*costs.notes]
    loading = cluster.calibration.load_s if cluster.calibration else {}
    if loading and data.kind not in loading:
        what = data.kind or "data that --data does not name"
        notes.append(f"loading {what} was not measured on {cluster.name} and counts nothing")
    return Prediction(program, times, account, memory, summary, tuple(notes))


def _prices(program: Program, cluster: Cluster, step_s: float, data: DataSet) -> dict[str, Any]:
    """An epoch: time, money, energy. None where there is no epoch, or the price is not known."""
    epoch = data.epoch(program.global_batch)
    seconds = None if epoch.steps is None else epoch.steps * step_s
    devices = (
        [cluster.device(r) for r in range(program.world_size)]
        if len(cluster.kinds) > 1
        else [cluster.device(0)]
    )
    count = program.world_size / len(devices)

    def of_epoch(rates: list[float | None]) -> float | None:
        """What all devices use, from what each does in a second."""
        known = [rate for rate in rates if rate is not None]
        if seconds is None or len(known) < len(rates):
            return None
        return sum(known) * count * seconds

    dollars = of_epoch([d.dollars_per_hour for d in devices])
    joules = of_epoch([d.power_w for d in devices])
    return {
        "epoch": epoch.described(),
        "epoch_time_s": seconds,
        "dollars_per_epoch": None if dollars is None else dollars / 3600,
        "kWh_per_epoch": None if joules is None else joules / 3.6e6,
        "goodput_ratio": goodput(cluster, program.world_size),
    }


def goodput(cluster: Cluster, ranks: int) -> float | None:
    """Share of the time that is not lost to checkpoints, failures and restarts.

    With checkpoints at Daly's optimum; Daly, "A higher order estimate of the optimum checkpoint
    interval for restart dumps", FGCS 22, 2006: of the wall time T_w(tau) = M e^(R/M)
    (e^((tau + delta)/M) - 1) T_s / tau the share T_s / T_w is work.
    """
    from math import exp, expm1

    if cluster.reliability is None:
        return None
    mtbf = cluster.reliability.mtbf_per_device_s / ranks
    delta, restart = cluster.reliability.checkpoint_s, cluster.reliability.restart_s
    tau = daly_interval(delta, mtbf)
    exponent = (tau + delta) / mtbf
    if exponent > 50 or restart / mtbf > 50:
        return 0.0
    return tau / (mtbf * expm1(exponent)) * exp(-restart / mtbf)


def daly_interval(delta: float, mtbf: float) -> float:
    """Optimum work between checkpoints that take ``delta``, in the unit of the arguments.

    Daly 2006, equation 37: sqrt(2 delta M) [1 + sqrt(delta / 2M) / 3 + (delta / 2M) / 9] - delta
    for delta < 2M, else M.
    """
    if delta >= 2 * mtbf:
        return mtbf
    x = delta / (2 * mtbf)
    return float((2 * delta * mtbf) ** 0.5 * (1 + x**0.5 / 3 + x / 9) - delta)
