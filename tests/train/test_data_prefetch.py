"""Prefetcher: in order, ahead by its depth and no more, errors told, closed within a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from orchestrator.errors import InputError
from orchestrator.train.data import Prefetcher

WAIT_S = 10.0


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; fails after WAIT_S."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_steps_come_in_order_from_the_start() -> None:
    with Prefetcher(lambda step: step * 10, start=3) as batches:
        assert [batches.next() for _ in range(50)] == list(range(30, 530, 10))


@pytest.mark.parametrize("depth", [1, 3])
def test_it_loads_ahead_by_its_depth_and_no_more(depth: int) -> None:
    loaded: list[int] = []
    with Prefetcher(loaded.append, depth=depth) as batches:
        until(lambda: len(loaded) == depth)
        batches.next()
        until(lambda: len(loaded) == depth + 1)
        time.sleep(0.05)  # time in which it could go too far
        assert loaded == list(range(depth + 1))


def test_loading_runs_beside_the_caller() -> None:
    """Step 1 is loaded while the caller has step 0 and asks for nothing."""
    second = threading.Event()
    with Prefetcher(lambda step: second.set() if step == 1 else None) as batches:
        batches.next()
        assert second.wait(WAIT_S)


def test_it_loads_on_a_thread_that_cannot_hold_up_the_end_of_the_process() -> None:
    with Prefetcher(lambda step: threading.current_thread()) as batches:
        thread = batches.next()
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_an_input_error_stays_one_and_keeps_its_place() -> None:
    def load(step: int) -> int:
        if step == 2:
            raise InputError("broken", "cat.jpg", "replace it")
        return step

    with Prefetcher(load) as batches:
        assert [batches.next(), batches.next()] == [0, 1]
        for _ in range(2):  # asking again gives the same, it does not hang
            with pytest.raises(InputError) as told:
                batches.next()
            assert told.value.location == "cat.jpg"


def test_even_an_exit_in_the_thread_reaches_the_caller() -> None:
    def load(step: int) -> int:
        raise SystemExit(5)

    with Prefetcher(load) as batches, pytest.raises(SystemExit):
        batches.next()


def test_it_loads_nothing_past_the_end() -> None:
    loaded: list[int] = []
    with Prefetcher(loaded.append, stop=2, depth=5) as batches:
        batches.next()
        batches.next()
        with pytest.raises(RuntimeError, match="no step 2"):
            batches.next()
    assert loaded == [0, 1]


def test_close_ends_the_thread() -> None:
    before = threading.active_count()
    batches = Prefetcher(lambda step: step)
    batches.next()
    assert threading.active_count() == before + 1
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        batches.next()


def test_close_waits_less_than_a_second_for_a_load_that_hangs() -> None:
    hanging, release = threading.Event(), threading.Event()

    def load(step: int) -> None:
        hanging.set()
        release.wait(WAIT_S)

    batches = Prefetcher(load)
    assert hanging.wait(WAIT_S)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 1.0
    release.set()


def test_close_wakes_a_caller_that_waits() -> None:
    release = threading.Event()
    told: list[BaseException] = []

    def ask() -> None:
        try:
            batches.next()
        except RuntimeError as error:
            told.append(error)

    batches = Prefetcher(lambda step: release.wait(WAIT_S))
    caller = threading.Thread(target=ask)
    caller.start()
    time.sleep(0.02)
    batches.close()
    caller.join(WAIT_S)
    release.set()
    assert len(told) == 1


def test_a_depth_of_none() -> None:
    with pytest.raises(ValueError, match="depth=0"):
        Prefetcher(lambda step: step, depth=0)
