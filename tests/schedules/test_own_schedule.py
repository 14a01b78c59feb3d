"""A schedule that no file of the package knows is planned, compiled, verified and simulated."""

from __future__ import annotations

import re

import pytest

from orchestrator.errors import InputError
from orchestrator.execute.verify import verify
from orchestrator.program import compile_plan, find_deadlock
from orchestrator.schedules import SCHEDULES, Action, Misfit, Schedule, Stages, Timetable
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.predict import simulate
from tests.program.small import LINEAR, small_plan

TWO = ("layers: a..relu, ranks: [0], split: none", "layers: b..c, ranks: [1], split: none")
BACK = ("layers: a, ranks: [0], split: none", "layers: relu..b, ranks: [1], split: none",
        "layers: c, ranks: [0], split: none")  # fmt: skip


def one_at_a_time(groups: int, stages: int, microbatches: int) -> Timetable:
    """A microbatch's forward and backward, through all stages, before the next one's.

    group 0  0F0  .   .  0B0 0F1  .   .  0B1
    group 1   .  1F0 1B0  .   .  1F1 1B1  .
    """
    return [
        [
            action
            for m in range(microbatches)
            for action in (
                *(Action("F", s, m) for s in range(g, stages, groups)),
                *(Action("B", s, m) for s in reversed(range(g, stages, groups))),
            )
        ]
        for g in range(groups)
    ]


def weights_last(groups: int, stages: int, microbatches: int) -> Timetable:
    """As above, but gradients of parameters, W, come behind all that another stage waits for.

    group 0  0F0  .   .  0I0 0F1  .   .  0I1 0W0 0W1
    group 1   .  1F0 1I0  .   .  1F1 1I1 1W0 1W1
    """
    return [
        [
            *(Action("I", a.stage, a.microbatch) if a.kind == "B" else a for a in actions),
            *(Action("W", a.stage, a.microbatch) for a in actions if a.kind == "B"),
        ]
        for actions in one_at_a_time(groups, stages, microbatches)
    ]


def even(stages: Stages, microbatches: int) -> Misfit | None:
    return Misfit("wants pairs", microbatches + 1) if microbatches % 2 else None


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "Naive", Schedule("Naive", "a test, 2026", one_at_a_time))
    pairs = Schedule("Pairs", "a test, 2026", one_at_a_time, even)
    monkeypatch.setitem(SCHEDULES, "Pairs", pairs)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("entries", [TWO, BACK], ids=["straight", "back to the first rank"])
def test_it_is_compiled_verified_and_simulated(entries: tuple[str, ...]) -> None:
    plan = small_plan(*entries, batch=8, more="schedule: Naive\nn_microbatches: 4\n")
    program = compile_plan(plan, LINEAR, dtype="float64")
    assert find_deadlock(program) is None
    walked = [
        (op.kind, op.microbatch) for op in program.rank_ops(0) if op.kind in ("F", "B")
        and program.segments[op.segment].stage == 0
    ]  # fmt: skip
    assert walked == [(kind, m) for m in range(4) for kind in "FB"]
    assert verify(program, LINEAR.recipe, update_examples={}, steps=2).passed
    naive = simulate(plan, LINEAR, load_cluster("k20x8"))
    usual = simulate(
        small_plan(*entries, batch=8, more="schedule: GPipe\nn_microbatches: 4\n"),
        LINEAR,
        load_cluster("k20x8"),
    )
    assert max(naive.times.end) > max(usual.times.end)


@pytest.mark.usefixtures("registered")
def test_its_own_refusal_reaches_the_user() -> None:
    plan = small_plan(*TWO, batch=6, more="schedule: Pairs\nn_microbatches: 3\n")
    with pytest.raises(InputError) as caught:
        compile_plan(plan, LINEAR)
    assert caught.value.message == "Pairs wants pairs"
    assert caught.value.location == "t.yaml:9, n_microbatches"
    assert caught.value.remedy == "n_microbatches: 4"


def test_elsewhere_its_name_is_unknown() -> None:
    *most, last = SCHEDULES
    names = re.escape(f"{', '.join(most)} or {last}")
    with pytest.raises(InputError, match=f"found 'Naive'; allowed: {names}"):
        small_plan(*TWO, more="schedule: Naive\n")
