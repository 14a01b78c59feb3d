"""How a run learns which layer stopped being finite: who is asked, and when there is a verdict."""

from __future__ import annotations

from orchestrator.execute.finite import Divergence, NonFinite, Where
from orchestrator.train.divergence import Examine, Inquiry

SEEN = Divergence(2, 5, True, NonFinite(8, Where.INPUT, "fc4", 2))
CONV = NonFinite(3, Where.OUTPUT, "conv2", 0)


def inquiry() -> tuple[Inquiry, list[int]]:
    asked: list[int] = []

    def ask(rank: int, question: Examine) -> None:
        asked.append(rank)

    return Inquiry(3, ask), asked


def all_in(steps: int) -> bool:
    return steps <= 5


def test_every_other_rank_is_asked_once_and_the_first_layer_of_all_counts() -> None:
    found, asked = inquiry()
    assert found.verdict(all_in) is None
    found.add(SEEN)
    assert asked == [0, 1]
    found.examined(0, CONV)
    assert found.verdict(all_in) is None
    found.add(Divergence(1, 5, True, NonFinite(8, Where.INPUT, "fc4", 1)))
    assert asked == [0, 1]
    assert found.verdict(all_in) == SEEN._replace(found=CONV)


def test_the_steps_before_it_are_waited_for() -> None:
    found, _ = inquiry()
    found.add(SEEN)
    found.examined(0, None)
    found.examined(1, None)
    assert found.verdict(lambda steps: steps < 5) is None
    assert found.verdict(all_in) == SEEN


def test_a_rank_that_has_ended_has_nothing_to_say() -> None:
    """It has nobody to answer for it: the last parameters were not finite on another rank."""
    found, _ = inquiry()
    found.examined(0, None)
    found.examined(1, None)
    found.add(SEEN)
    assert found.verdict(all_in) == SEEN
