"""Replicas that are not alike, against the program that lists every one of them."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from orchestrator.errors import InputError
from orchestrator.models import Linear, Model
from orchestrator.observe.accounting import Account, Accountant, Shares
from orchestrator.observe.timeline import StepTimes, from_zero
from orchestrator.plan import Plan
from orchestrator.plan.load import read_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.ops import STEP, F
from orchestrator.program.resolve import model_of
from orchestrator.simulate.algorithms import Phase
from orchestrator.simulate.cluster import Cluster, read_cluster
from orchestrator.simulate.engine import Engine
from orchestrator.simulate.network import Route
from orchestrator.simulate.predict import simulate, simulate_program
from orchestrator.simulate.processors import Sharing, Work
from orchestrator.simulate.replicas import classes
from orchestrator.simulate.unequal import SAMPLED, Jitter, Unequal, run_unequal

STEPS = 3
DEVICE = "{name: D, memory_GiB: 4, memory_GBps: 200, tflops: {float32: %s}, source: test}"


def cluster(count: int, *, slow: str = "[]", devices: str = "") -> Cluster:
    return read_cluster(
        f"schema_version: 1\nname: test\nsource: test\nnodes: 1\ndevices_per_node: {count}\n"
        + (devices or f"device: {DEVICE % 2}\n")
        + f"network:\n  - {{name: switch, size: {count}, GBps: 5, latency_us: 10, "
        f"topology: switch}}\nslow: {slow}\n"
    )


def pipeline(replicas: int, schedule: str = "1F1B", extra: str = "") -> tuple[Plan, Model]:
    """Three stages, of two columns in the middle, on four ranks; times the replicas."""
    layers = [Linear(name=name, features=8) for name in ("a", "b", "c")]
    plan = read_plan(
        f"schema_version: 1\nname: p\nmodel: {{name: any}}\nglobal_batch_size: {8 * replicas}\n"
        f"n_microbatches: 4\nschedule: {schedule}\nreplicas: {replicas}\n{extra}placement:\n"
        "  - {layers: a, ranks: [0], split: none}\n  - {layers: b, ranks: [1, 2], split: channel}\n"
        "  - {layers: c, ranks: [3], split: none}\n",
        "plan.yaml",
    )
    return plan, Model("chain", (8,), layers)


def data_parallel(replicas: int) -> Plan:
    return read_plan(
        f"schema_version: 1\nname: d\nmodel: {{name: lenet5}}\nglobal_batch_size: {8 * replicas}\n"
        f"replicas: {replicas}\nplacement:\n  - {{layers: conv1..fc5, ranks: [0], split: none}}\n",
        "plan.yaml",
    )


class NoNetwork:
    """Every message takes its latency, whatever else is on its way."""

    capacity: list[float] = []
    shared_by = 0

    def path(self, source: int, target: int) -> tuple[Route, float]:
        return (), 0.0


class Fixed:
    """Times that depend on the op and on the slowness of its rank alone; and jitter, if asked."""

    def __init__(self, cluster: Cluster, jitter: Jitter | None = None) -> None:
        self.cluster, self.jitter = cluster, jitter
        self.step = 0
        self.numbers: dict[tuple[object, ...], int] = {}  # of ops in the folded program

    def work(self, program: Program, i: int) -> Work:
        op = program.op(i)
        seconds = {F: 0.5, STEP: 0.1}.get(op.kind, 1.0) * (1 + 0.25 * op.segment)
        if self.jitter is not None:
            replica, rank = divmod(op.rank, program.ranks_per_replica)
            number = self.numbers[rank, op.kind, op.segment, op.microbatch]
            factors = self.jitter.factors(self.step, number, program.replicas)
            seconds *= float(factors[replica])
        seconds *= self.cluster.slowness(op.rank)
        return Work(seconds, seconds)

    def message(self, source: int, target: int, size: int) -> tuple[float, float] | None:
        return 0.03, size

    def phases(self, kind: str, size: int, group: tuple[int, ...]) -> tuple[Phase, ...] | None:
        return (Phase(0.2, 0.0, ()),)

    def sharing(self) -> Sharing | None:
        return None

    def slowdown(self, rank: int) -> float:
        return 0.0

    def loading(self, rank: int) -> float:
        raise AssertionError("nothing is shared")

    def node(self, rank: int) -> int:
        return 0


def engine_of(program: Program, costs: Fixed) -> Engine:
    return Engine(program, NoNetwork(), costs)  # type: ignore[arg-type]


def replayed(program: Program, costs: Fixed, jitter: Jitter | None = None) -> Unequal:
    engine = engine_of(program, costs)
    first = engine.run()
    return run_unequal(
        program, engine.graph, first, costs,  # type: ignore[arg-type]
        Accountant(program), STEPS, jitter or Jitter(), {},
    )  # fmt: skip


def listed(program: Program, costs: Fixed) -> StepTimes:
    """The last step of a program that lists all replicas."""
    costs.step = 0
    times = engine_of(program, costs).run()
    for costs.step in range(1, STEPS):  # another engine each: the costs are of the step
        times = engine_of(program, costs).run([times.finish[rank] for rank in program.ranks])
    return times


def assert_same_shares(found: Shares, expected: Shares) -> None:
    assert asdict(found) == pytest.approx(asdict(expected), rel=1e-9, abs=1e-12)


def assert_as_listed(found: Unequal, whole: Program, times: StepTimes) -> None:
    account = Accountant(whole).account(times)
    each = whole.ranks_per_replica
    assert_same_shares(found.mean, account.mean)
    for rank in range(each):
        assert_same_shares(found.account.ranks[rank], account.ranks[rank])
        slow = found.slowest * each + rank
        assert_same_shares(found.slowest_account.ranks[rank], account.ranks[slow])
    assert found.step_time_s == pytest.approx(by_replica(account, "step_time_s", each).mean(axis=1))
    computed = by_replica(account, "compute_time_s", each).max(axis=1)
    assert found.compute_time_s == pytest.approx(computed)


def by_replica(account: Account, name: str, each: int) -> np.ndarray:
    values = [getattr(shares, name) for shares in account.ranks.values()]
    return np.array(values).reshape(-1, each)


@pytest.mark.parametrize("extra", ["", "optimizer_sharding: zero1\n"])
@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
@pytest.mark.parametrize("slow", ["[]", "[{rank: 9, factor: 1.5}]", "[{rank: 0, factor: 2}]"])
def test_slow_ranks_as_if_every_replica_were_listed(schedule: str, slow: str, extra: str) -> None:
    plan, model = pipeline(3, schedule, extra)
    costs = Fixed(cluster(12, slow=slow))
    whole = compile_plan(plan, model)
    found = replayed(compile_plan(plan, model, fold=True), costs)
    assert_as_listed(found, whole, listed(whole, costs))


def test_replicas_that_are_alike_are_as_the_engine_has_them() -> None:
    plan, model = pipeline(4)
    folded, costs = compile_plan(plan, model, fold=True), Fixed(cluster(16))
    found, expected = replayed(folded, costs), listed(folded, costs)
    assert found.classes == 1
    times = from_zero(found.times)
    for column in ("ready", "start", "end", "begin", "finish"):
        mine = getattr(times, column)
        assert mine == pytest.approx(getattr(expected, column), rel=1e-12, abs=1e-12)


def test_jitter_as_if_every_replica_were_listed() -> None:
    plan, model = pipeline(3)
    folded, whole = compile_plan(plan, model, fold=True), compile_plan(plan, model)
    jitter, some = Jitter(0.2, seed=7), cluster(12, slow="[{rank: 5, factor: 1.3}]")
    found = replayed(folded, Fixed(some), jitter)
    costs = Fixed(some, jitter)
    costs.numbers = {(o.rank, o.kind, o.segment, o.microbatch): o.id for o in folded.ops()}
    assert found.classes == 3
    assert_as_listed(found, whole, listed(whole, costs))


def test_a_sample_of_many_keeps_the_sum_of_the_shares() -> None:
    plan, model = pipeline(10 * SAMPLED)
    folded = compile_plan(plan, model, fold=True)
    mean = replayed(folded, Fixed(cluster(40 * SAMPLED)), Jitter(0.1)).mean
    parts = [
        f.name for f in fields(Shares) if f.name not in ("step_time_s", "communication_time_s")
    ]
    assert sum(getattr(mean, name) for name in parts) == pytest.approx(mean.step_time_s, rel=1e-12)


def test_jitter_is_drawn_by_counter() -> None:
    jitter = Jitter(0.3, seed=1)
    many = jitter.factors(2, 5, 200_000)
    assert many.mean() == pytest.approx(1, abs=0.005)
    assert many.std() == pytest.approx(0.3, rel=0.02)
    assert many.min() > 0
    assert (jitter.factors(2, 5, 10) == many[:10]).all()
    others = [jitter.factors(3, 5, 10), jitter.factors(2, 6, 10), Jitter(0.3, 2).factors(2, 5, 10)]
    assert not any((other == many[:10]).any() for other in others)


# -- simulate(), on a cluster's own costs and network ------------------------------------------

MIXED = (
    f"devices:\n  - {{count: 3, device: {DEVICE % 2}}}\n"
    f"  - {{count: 1, device: {(DEVICE % 1).replace('name: D', 'name: E')}}}\n"
)


@pytest.mark.parametrize(
    "some",
    [cluster(4, slow="[{rank: 2, factor: 1.5}]"), cluster(4, devices=MIXED)],
    ids=["a slow rank", "mixed devices"],
)
def test_totals_are_of_all_ranks(some: Cluster) -> None:
    """Only the first replica was asked once: a slow rank of another one was as fast as all."""
    plan = data_parallel(4)
    model = model_of(plan)
    found = simulate(plan, model, some).summary
    whole = simulate_program(compile_plan(plan, model), some).summary
    names = [f.name for f in fields(Shares)] + ["images_per_s", "bytes_sent", "epoch_time_s"]
    assert {n: found[n] for n in names} == pytest.approx({n: whole[n] for n in names}, rel=1e-9)
    first = {n: found["ranks"][0][n] for n in names[:7]}
    assert first == pytest.approx({n: whole["ranks"][0][n] for n in names[:7]}, rel=1e-9)
    assert found["wait_time_s"] > 0
    assert len(found["ranks"]) == 1
    slowest = found["replicas"]["slowest"]
    assert slowest == (2 if some.slow else 3)
    assert found["replicas"]["slowest_ranks"][0]["wait_time_s"] == 0


def slowed(count: int, first: float, others: float, bandwidth: float = 1e8) -> Cluster:
    """Devices that differ in what a transfer costs their computation; links that take a while."""
    share = "  - {count: %d, device: %s}\n"
    device = (DEVICE % 0.02).replace("source", "transfer_slowdown: %s, source")
    kinds = share % (1, device % first) + share % (count - 1, device % others)
    found = cluster(count, devices=f"devices:\n{kinds}")
    return replace(found, network=tuple(replace(x, bandwidth=bandwidth) for x in found.network))


def test_a_transfer_slows_each_device_by_its_own_share() -> None:
    """All devices lost the largest share of any once."""
    plan, model = pipeline(1)
    program = compile_plan(plan, model)

    def computed(some: Cluster) -> list[float]:
        rows = simulate_program(program, some).summary["ranks"]
        return [row["compute_time_s"] for row in rows]

    free, mixed, lost = (computed(slowed(4, *x)) for x in ((0, 0), (0.5, 0), (0.5, 0.5)))
    assert mixed[0] > free[0] * 1.01
    assert mixed[1:] == pytest.approx(free[1:], rel=1e-9)
    assert min(b / a for a, b in zip(free[1:], lost[1:], strict=True)) > 1.01


# With a quick link a transfer ends in the middle of a computation, another one in each replica.
@pytest.mark.parametrize(("bandwidth", "tolerance"), [(1e8, 1e-9), (4e9, 0.05)])
@pytest.mark.parametrize(("first", "others"), [(0.0, 0.6), (0.6, 0.0)])
def test_replicas_on_devices_that_transfers_slow_down_otherwise(
    first: float, others: float, bandwidth: float, tolerance: float
) -> None:
    """The other replicas' computation was stretched as the first one's."""
    plan = read_plan(
        "schema_version: 1\nname: d\nmodel: {name: any}\nglobal_batch_size: 32\nreplicas: 4\n"
        "placement:\n  - {layers: a..d, ranks: [0], split: none}\n",
        "plan.yaml",
    )
    layers = [Linear(name=name, features=1200) for name in "abcd"]  # a reduction after each
    model, some = Model("chain", (1200,), layers), slowed(4, first, others, bandwidth)
    whole = simulate_program(compile_plan(plan, model), some).summary
    found = simulate(plan, model, some).summary
    free = simulate(plan, model, slowed(4, 0, 0, bandwidth)).summary
    for name in ("compute_time_s", "step_time_s"):
        assert found[name] == pytest.approx(whole[name], rel=tolerance)
    assert found["compute_time_s"] > free["compute_time_s"] * 1.01


def test_jitter_makes_a_step_longer_and_the_same_seed_repeats_it() -> None:
    plan = data_parallel(64)
    model = model_of(plan)
    quiet = simulate(plan, model, cluster(64)).summary
    one, again, other = (
        simulate(plan, model, cluster(64), jitter=0.1, seed=seed).summary for seed in (1, 1, 2)
    )
    for summary in (one, again, other):
        del summary["simulate_wall_s"]
    assert one == again != other
    assert one["step_time_s"] > quiet["step_time_s"]


def test_memory_must_fit_the_smallest_device() -> None:
    plan = data_parallel(4)
    small = MIXED.replace("name: E, memory_GiB: 4", "name: E, memory_GiB: 0.001")
    assert small != MIXED
    assert simulate(plan, model_of(plan), cluster(4, devices=MIXED)).summary["fits"]
    assert not simulate(plan, model_of(plan), cluster(4, devices=small)).summary["fits"]


def test_classes_are_numbered_by_their_first_replica() -> None:
    plan, model = pipeline(4)
    program = compile_plan(plan, model, fold=True)
    slow = "[{rank: 6, factor: 2}, {rank: 10, factor: 2}, {rank: 13, factor: 2}]"
    assert classes(program, cluster(16)) == [0, 0, 0, 0]
    assert classes(program, cluster(16, slow=slow)) == [0, 1, 1, 2]
    mixed = MIXED.replace("count: 3", "count: 9").replace("count: 1", "count: 7")
    assert classes(program, cluster(16, devices=mixed)) == [0, 0, 1, 2]


@pytest.mark.parametrize(("jitter", "seed"), [(-0.1, 0), (float("nan"), 0), (99, 0), (0.1, -1)])
def test_a_jitter_that_is_none_is_refused(jitter: float, seed: int) -> None:
    plan = data_parallel(4)
    with pytest.raises(InputError, match="jitter"):
        simulate(plan, model_of(plan), cluster(4), jitter=jitter, seed=seed)
