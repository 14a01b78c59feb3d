"""The local executor: every rank in one process, in lockstep, without a socket.

Ranks take turns. One that has to wait for a transfer lets the next one go on; if all of them wait,
the program has deadlocked, and says where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from orchestrator.execute.device import Cpu, Device
from orchestrator.execute.finite import Diverged, Divergence, earliest, first_non_finite
from orchestrator.execute.interpreter import Feed, LossNotFinite, RankInterpreter
from orchestrator.execute.parameters import Slot, initial_value
from orchestrator.execute.transport import Handle, LocalWorld
from orchestrator.models.model import Recipe
from orchestrator.observe.timeline import StepTimes, join
from orchestrator.program.ledger import Buffer, Edge
from orchestrator.program.ops import Program


class LocalExecutor:
    """All ranks of a program in this process.

    Args:
        strict: let the in-process transport play NCCL (rendezvous); else gloo.
    """

    def __init__(
        self,
        program: Program,
        feed: Feed,
        recipe: Recipe,
        *,
        strict: bool = True,
        device: Device | None = None,
    ) -> None:
        self.program = program
        self.world = LocalWorld(strict=strict)
        self.device = device or Cpu()
        wholes: dict[str, Tensor] = {}

        def value(slot: Slot) -> Tensor:
            return initial_value(slot, recipe.seed, wholes)

        self.ranks = [
            RankInterpreter(
                program.for_rank(rank), self.world.transport(rank), feed, recipe, self.device, value
            )
            for rank in program.ranks
        ]

    def step(self, step: int) -> float:
        """Run one training step; returns its loss, the mean over the global batch.

        Raises:
            Diverged: the loss is not finite. No weight has been changed with it.
        """
        running: dict[int, Iterator[Handle]] = {r.rank: r.step(step) for r in self.ranks}
        waiting: dict[int, Handle | None] = dict.fromkeys(running)
        while running:
            moved = False
            for rank in list(running):
                handle = waiting[rank]
                if handle is not None and not handle.done():
                    continue
                moved = True
                try:
                    waiting[rank] = next(running[rank], None)
                except LossNotFinite as error:
                    found = earliest(map(first_non_finite, self.ranks))
                    raise Diverged(Divergence(rank, step, True, found)) from error
                if waiting[rank] is None:
                    del running[rank]
            if not moved:
                raise RuntimeError(f"deadlock: {self._who_waits(waiting)}")
        return self.loss()

    def loss(self) -> float:
        """Loss of the last step."""
        return float(sum(rank.loss for rank in self.ranks))

    def times(self) -> StepTimes:
        """When every op of the last step ran."""
        return join(self.program, [rank.unread().read() for rank in self.ranks], {})

    def sent(self) -> Counter[Edge]:
        """Bytes sent so far, all ranks; of collectives the ring equivalent."""
        total: Counter[Edge] = Counter()
        for rank in self.ranks:
            total.update(rank.sent)
        return total

    def handed(self) -> Counter[Buffer]:
        """Buffers handed to collectives so far, all ranks."""
        total: Counter[Buffer] = Counter()
        for rank in self.ranks:
            total.update(rank.transport.buffers)
        return total

    def parameters(self) -> dict[str, Tensor]:
        """The whole network's weights and biases by ``layer.weight`` and ``layer.bias``."""
        return gather_parameters(self.program, self.ranks)

    def _who_waits(self, waiting: dict[int, Handle | None]) -> str:
        stuck = [(r, waiting.get(r.rank)) for r in self.ranks]
        return "; ".join(r.waits_for(handle) for r, handle in stuck if handle is not None)


def disagreements(program: Program, ranks: list[RankInterpreter]) -> list[str]:
    """Where ranks that hold the same weights do not hold the same bits, one line each."""
    by_rank = {rank.rank: rank for rank in ranks}
    found = []
    for segment, buckets in zip(program.segments, program.buckets, strict=True):
        for bucket in buckets:
            group = [r for r in by_rank if r % program.ranks_per_replica in bucket.ranks]
            first = by_rank[group[0]].parameters[segment.index]
            for other in group[1:]:
                weights = by_rank[other].parameters[segment.index].own
                for slot, a, b in zip(first.slots, first.own, weights, strict=True):
                    if not torch.equal(a, b):
                        found.append(
                            f"{slot.name} differs between rank {group[0]} and rank {other}"
                        )
    return found


def gather_parameters(program: Program, ranks: list[RankInterpreter]) -> dict[str, Tensor]:
    """Put the ranks' tiles, or the masters of them, together to whole weights; replicas and batch
    parts agree."""
    found: dict[str, Tensor] = {}
    for layer in program.model.layers:
        for spec in (spec for spec in layer.specs if not spec.tied_to):
            found[f"{layer.name}.{spec.name}"] = torch.full(spec.shape, torch.nan).double()
    for rank in ranks:
        for parameters in rank.parameters.values():
            if parameters.has_master:
                for slot, start, stop, value in parameters.targets:
                    whole = found[slot.name]
                    part = slot.of(whole).flatten()
                    part[start:stop] = value.flatten().double().cpu()
                    slot.put(whole, part.view(slot.shape))
                continue
            for slot, weight in zip(parameters.slots, parameters.own, strict=True):
                slot.put(found[slot.name], weight.detach().double().cpu())
    return found
