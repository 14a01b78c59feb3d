"""The clock against closed forms, against itself, and folded against unfolded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from orchestrator.models import Linear, Model
from orchestrator.observe.timeline import StepTimes
from orchestrator.plan import Plan, load_plan
from orchestrator.plan.load import read_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.ledger import edges
from orchestrator.program.ops import STEP, F, I, W
from orchestrator.program.resolve import model_of
from orchestrator.simulate.algorithms import Phase
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.engine import Engine
from orchestrator.simulate.network import Route, Topology
from orchestrator.simulate.predict import simulate
from orchestrator.simulate.processors import Sharing, Work


class NoNetwork:
    """Every message arrives at once."""

    capacity: list[float] = []
    shared_by = 0

    def path(self, source: int, target: int) -> tuple[Route, float]:
        return (), 0.0


class Given:
    """Every forward takes one time, every backward another, updates nothing."""

    def __init__(self, forward: float, backward: float) -> None:
        self.forward, self.backward = forward, backward

    def work(self, program: Program, i: int) -> Work:
        seconds = self.seconds(program.columns.kind[i])
        return Work(seconds, seconds)

    def seconds(self, kind: str) -> float:
        return 0.0 if kind == STEP else self.forward if kind == F else self.backward

    def message(self, source: int, target: int, size: int) -> tuple[float, float] | None:
        return 0.0, size

    def phases(self, kind: str, size: int, group: tuple[int, ...]) -> tuple[Phase, ...] | None:
        return (Phase(0.0, 0.0, ()),)

    def sharing(self) -> Sharing | None:
        return None

    @property
    def jitter(self) -> float:
        raise AssertionError("nothing is shared")

    def loading(self, rank: int) -> float:
        raise AssertionError("nothing is shared")

    def node(self, rank: int) -> int:
        return 0


class Halved(Given):
    """A backward's input half takes as long as a forward, its weight half another time."""

    def __init__(self, forward: float, weight: float) -> None:
        super().__init__(forward, forward + weight)
        self.weight = weight

    def seconds(self, kind: str) -> float:
        return {I: self.forward, W: self.weight}.get(kind, super().seconds(kind))


def pipeline(
    stages: int, microbatches: int, schedule: str, ranks: Sequence[int] | None = None
) -> Program:
    """As many equal layers as stages, each on a rank of its own unless ``ranks`` says on which."""
    layers = [Linear(name=f"fc{i}", features=8) for i in range(stages)]
    entries = "\n".join(
        f"  - {{layers: fc{i}, ranks: [{rank}], split: none}}"
        for i, rank in enumerate(ranks or range(stages))
    )
    plan = read_plan(
        f"schema_version: 1\nname: p\nmodel: {{name: any}}\nglobal_batch_size: {microbatches}\n"
        f"n_microbatches: {microbatches}\nschedule: {schedule}\nplacement:\n{entries}\n",
        "plan.yaml",
    )
    return compile_plan(plan, Model("chain", (8,), layers))


def run(program: Program, costs: Given) -> StepTimes:
    return Engine(program, NoNetwork(), costs).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
@pytest.mark.parametrize("stages", range(1, 9))
def test_pipelines_end_when_the_papers_say(schedule: str, stages: int) -> None:
    """(m + p - 1)(t_F + t_B), Huang et al. 2019 and Narayanan et al. 2021."""
    for microbatches in range(1, 17):
        program = pipeline(stages, microbatches, schedule)
        times = run(program, Given(1.0, 2.0))
        assert max(times.end) == (microbatches + stages - 1) * 3.0


@pytest.mark.parametrize("p", range(2, 6))
def test_looped_bfs_ends_when_its_closed_form_says(p: int) -> None:
    """((v - 1) max(m, p) + m + p - 1)(t_F + t_B), Lamy-Poirier 2022."""
    for v in (1, 2, 3):
        for m in range(1, 9):
            program = pipeline(p * v, m, "LoopedBFS", [*range(p)] * v)
            times = run(program, Given(1.0, 2.0))
            assert max(times.end) == ((v - 1) * max(m, p) + m + p - 1) * 3.0


@pytest.mark.parametrize("p", range(2, 7))
def test_zero_bubble_pipelines_end_when_the_papers_say(p: int) -> None:
    """ZB-H1: m (t_F + t_I + t_W) + (p - 1)(t_F + t_I - t_W), Qi et al. 2023; DualPipeV the same
    with two stages a rank."""
    for m in range(2 * p, 2 * p + 4):
        for weight in (1.0, 2.0):
            costs, bubble = Halved(2.0, weight), (p - 1) * (4.0 - weight)
            times = run(pipeline(p, m, "ZB-H1"), costs)
            assert max(times.end) == m * (4.0 + weight) + bubble
            program = pipeline(2 * p, m, "DualPipeV", [*range(p), *reversed(range(p))])
            assert max(run(program, costs).end) == 2 * m * (4.0 + weight) + bubble


def test_ops_keep_their_needs_and_lanes() -> None:
    plan = load_plan("one-weird-trick-broadcast")
    program = compile_plan(plan, model_of(plan))
    cluster = load_cluster("k20x8")
    topology = Topology(cluster)
    times = Engine(program, topology, CostModel(program, cluster, topology)).run()
    last: dict[tuple[int, str], float] = {}
    for op in program.ops():
        assert times.start[op.id] >= max((times.end[n] for n in op.needs), default=0.0)
        assert times.end[op.id] >= times.start[op.id] >= times.ready[op.id]
        if op.lane in ("compute", "reduce"):
            assert times.start[op.id] >= last.get((op.rank, op.lane), 0.0)
            last[op.rank, op.lane] = times.end[op.id]


def test_two_simulations_are_the_same_to_the_bit() -> None:
    predict = partial(simulated, "columns-x-data", "dgx1-p100")
    assert predict() == predict()


def simulated(plan_name: str, cluster_name: str, *settings: str) -> StepTimes:
    plan = load_plan(plan_name, settings)
    return simulate(plan, model_of(plan), load_cluster(cluster_name)).times


@pytest.mark.parametrize(
    ("plan_name", "replicas"),
    [("krizhevsky2012-half", 2), ("single", 4), ("single", 8), ("data-parallel", 2),
     ("data-parallel", 4), ("columns-x-data", 2)],
)  # fmt: skip
def test_one_replica_stands_for_all_of_them(plan_name: str, replicas: int) -> None:
    """Equal replicas on their own devices: what is folded takes as long as what is not."""
    plan = load_plan(plan_name, [f"replicas={replicas}"])
    model, cluster = model_of(plan), load_cluster("dgx-a100")
    whole = compile_plan(plan, model)
    topology = Topology(cluster)
    apart = Engine(whole, topology, CostModel(whole, cluster, topology)).run()
    folded = simulate(plan, model, cluster, steps=1).times
    assert max(folded.end) == pytest.approx(max(apart.end), rel=1e-9)


def test_the_next_step_begins_where_each_rank_has_left_the_last_one() -> None:
    """Rank 1 of the two columns has no fc8, so it is at the first layer while rank 0 is not; rank
    0, which every step waits for, gains nothing by that."""
    plan = load_plan("krizhevsky2012")
    model, cluster = model_of(plan), load_cluster("gtx580x2")
    program = compile_plan(plan, model)
    topology = Topology(cluster)
    engine = Engine(program, topology, CostModel(program, cluster, topology))
    first = engine.run()
    second = engine.run([first.finish[rank] for rank in program.ranks])
    left = min(first.finish.values())
    assert second.begin == {rank: at - left for rank, at in first.finish.items()}
    assert left == first.finish[1] < first.finish[0]
    assert min(second.start[i] for i in program.order[1]) == 0 < second.begin[0]
    assert left + second.finish[0] == pytest.approx(2 * first.finish[0], rel=1e-12)
    for op in program.ops():
        assert second.start[op.id] >= second.begin[op.rank]
    assert min(simulate(plan, model, cluster).times.begin.values()) == 0


class Jittery(Given):
    """Computations whose times are drawn anew in every step."""

    def sharing(self) -> Sharing | None:
        return Sharing(ranks=1, threads=1, slowdown=[0.0] * 4)

    @property
    def jitter(self) -> float:
        return 0.1

    def loading(self, rank: int) -> float:
        return 0.0

    def node(self, rank: int) -> int:
        return rank


class Posting(Jittery):
    """A rank's computation waits a quarter of a second for each transfer that it posts."""

    def sharing(self) -> Sharing | None:
        return Sharing(ranks=1, threads=1, slowdown=[0.0] * 4, post=0.25)

    @property
    def jitter(self) -> float:
        return 0.0


class Loading(Jittery):
    """Every rank loads its next images beside the step, for longer than the step takes."""

    @property
    def jitter(self) -> float:
        return 0.0

    def loading(self, rank: int) -> float:
        return 10.0


def test_transfers_are_posted_one_after_another_between_computations() -> None:
    """Each keeps its rank for a while, begins behind that, and computation goes on behind all."""
    program = pipeline(2, 2, "GPipe")
    times = run(program, Posting(1.0, 2.0))
    first, second = (
        [(str(op), times.start[op.id]) for op in program.rank_ops(rank)] for rank in (0, 1)
    )
    assert first[:6] == [
        ("0F0", 0.0), ("1SEND_F0", 1.25), ("1RECV_B0", 6.25), ("1RECV_B1", 8.5), ("0F1", 1.75),
        ("1SEND_F1", 3.0),
    ]  # fmt: skip
    assert second[:7] == [
        ("1RECV_F0", 1.25), ("1RECV_F1", 3.0), ("1F0", 1.25), ("1F1", 3.0), ("1B0", 4.0),
        ("1SEND_B0", 6.25), ("1B1", 6.25),
    ]  # fmt: skip


def test_a_step_that_begins_as_the_one_before_is_that_one_again() -> None:
    """To the bit, whatever the clock says; and it is not played a second time."""
    program = pipeline(3, 4, "1F1B")
    engine = Engine(program, NoNetwork(), Given(0.1, 0.2))  # type: ignore[arg-type]
    first = engine.run()
    engine.graph.missing.clear()  # whoever plays another step fails
    for clock in (0.0, 0.1, 1e9):
        assert engine.run([clock] * 3) == first
        assert engine.finish([clock] * 3) == list(first.finish.values())


def test_steps_that_begin_alike_differ_where_times_are_drawn() -> None:
    program = pipeline(2, 2, "GPipe")
    engine = Engine(program, NoNetwork(), Jittery(1.0, 2.0))  # type: ignore[arg-type]
    first, second = engine.run(), engine.run()
    again = Engine(program, NoNetwork(), Jittery(1.0, 2.0))  # type: ignore[arg-type]
    assert first.end != second.end
    assert (again.run().end, again.run().end) == (first.end, second.end)


def test_a_step_waits_for_images_that_are_still_being_loaded() -> None:
    """On one core, a computation and a load go at half their speed each: 3 seconds of step take 6,
    and of 10 seconds of loading 7 are left."""
    program = pipeline(1, 1, "GPipe")
    engine = Engine(program, NoNetwork(), Loading(1.0, 2.0))  # type: ignore[arg-type]
    first = engine.run()
    assert first.finish[0] == pytest.approx(6.0)
    second = engine.run([first.finish[0]])
    assert min(second.start) == pytest.approx(7.0)
    assert first.loading == {}
    (waited,) = second.loading.items()
    assert waited[0] == program.order[0][0]
    assert waited[1] == pytest.approx((0.0, 7.0))
    third = engine.run([second.finish[0]])
    assert third.start == pytest.approx(second.start)


def test_a_straggler_slows_the_step() -> None:
    plan = load_plan("data-parallel")
    model = model_of(plan)
    quick, slow = (
        load_cluster("gtx580x2"),
        load_cluster("gtx580x2", ["slow=[{rank: 1, factor: 2}]"]),
    )
    before, after = (simulate(plan, model, c).summary["step_time_s"] for c in (quick, slow))
    assert 1.9 < after / before < 2.01


def test_waiting_ranks_wait_and_the_shares_add_up() -> None:
    plan = load_plan("data-parallel")
    slow = load_cluster("gtx580x2", ["slow=[{rank: 1, factor: 2}]"])
    summary = simulate(plan, model_of(plan), slow).summary
    for row in summary["ranks"]:
        parts = ("compute", "exposed_communication", "wait", "bubble", "loading", "other")
        assert sum(row[f"{p}_time_s"] for p in parts) == pytest.approx(row["step_time_s"])
    assert summary["ranks"][0]["wait_time_s"] > 0.4 * summary["step_time_s"]


def test_time_grows_linearly_with_ops() -> None:
    """Not a matter of seconds: the events handled are as many as the ops, whatever the size."""
    counts = {}
    for microbatches in (8, 16, 32):
        program = pipeline(4, microbatches, "1F1B")
        engine = Engine(program, NoNetwork(), Given(1.0, 2.0))  # type: ignore[arg-type]
        engine.run()
        counts[microbatches] = engine.counter / len(program.columns)
    assert max(counts.values()) <= 1.05 * min(counts.values())


def test_a_large_program_sends_what_its_replicas_send() -> None:
    """512 ranks, 8 stages of 8 columns in 8 replicas; how fast is for the benchmark to say."""
    plan = many_columns(8)
    model = model_of(plan)
    summary = simulate(plan, model, load_cluster("dgx-a100", ["nodes=64"])).summary
    assert len(summary["ranks"]) == 64
    assert summary["bytes_sent"] == edges(compile_plan(plan, model)).total()


def many_columns(replicas: int) -> Plan:
    spans = (
        "conv1..pool1", "conv2..pool2", "conv3..relu3", "conv4..relu4", "conv5..pool5",
        "fc6..drop6", "fc7..drop7", "fc8",
    )  # fmt: skip
    entries = "\n".join(
        f"  - {{layers: {span}, ranks: {8 * i}..{8 * i + 7}, split: channel}}"
        for i, span in enumerate(spans)
    )
    return read_plan(
        "schema_version: 1\nname: many\nmodel: {name: alexnet2014}\n"
        f"global_batch_size: {64 * replicas}\nn_microbatches: 8\nschedule: 1F1B\n"
        f"replicas: {replicas}\nplacement:\n{entries}\n",
        "plan.yaml",
    )
