"""What torch really allocates on the CPU, rank by rank, while the local executor runs a step.

torch's profiler records every allocation and release with its address. Each rank's turns are
marked, so an allocation belongs to the rank that made it, whoever releases it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.memory_meter import allocations, events
from orchestrator.execute.transport import Handle
from orchestrator.models.model import Model
from orchestrator.program import Program

_TURN = "turn of rank "


class StoredFeed:
    """Images and labels, there before anything is measured; what is asked for is copied."""

    def __init__(self, model: Model, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (count, *model.input_shape)
        if model.input.integer:
            self._images = torch.randint(model.vocabulary, shape, generator=generator)
        else:
            self._images = torch.randn(shape, generator=generator)
        labels = (count, *model.labels.shape)
        self._labels = torch.randint(model.classes, labels, generator=generator)

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self._images[samples]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self._labels[samples]


def measured_peaks(program: Program) -> list[int]:
    """By rank, the most bytes of tensors alive during the second step."""
    feed = StoredFeed(program.model, program.global_batch)
    recipe = replace(program.model.recipe, optimizer=program.optimizer)
    executor = LocalExecutor(program, feed, recipe)
    executor.step(0)  # what is made once, such as caches of the libraries, is made now
    for rank in executor.ranks:
        rank._reset()
        for runner in rank.runners.values():
            runner.saved.clear()
        rank.step = _marked(rank)  # type: ignore[method-assign]
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True) as recorded:
        executor.step(1)
    most = _most_by_rank(recorded, len(executor.ranks))
    return [rank.state_bytes() + most[rank.rank] for rank in executor.ranks]


def _marked(rank: RankInterpreter) -> Any:
    run = rank.step

    def step(number: int) -> Iterator[Handle]:
        turns = run(number)
        while True:
            with record_function(f"{_TURN}{rank.rank}"):
                handle = next(turns, None)
            if handle is None:
                return
            yield handle

    return step


def _most_by_rank(recorded: profile, count: int) -> list[int]:
    turns = started(recorded, _TURN)
    times = [start for start, _ in turns]
    owners: dict[int, tuple[int, int]] = {}
    now, most = [0] * count, [0] * count
    for when, address, amount in allocations(recorded):
        if amount > 0:
            rank = int(turns[max(0, bisect_right(times, when) - 1)][1])
            owners[address] = (rank, amount)
            now[rank] += amount
            most[rank] = max(most[rank], now[rank])
        elif address in owners:  # else it was there before
            rank, taken = owners.pop(address)
            now[rank] -= taken
    return most


def started(recorded: profile, name: str) -> list[tuple[int, str]]:
    """When what ``record_function`` calls ``name`` and more began, in ns, and what more."""
    found = [(e.start_time_ns, e.name) for e in events(recorded) if e.name.startswith(name)]
    return [(when, full.removeprefix(name)) for when, full in sorted(found)]
