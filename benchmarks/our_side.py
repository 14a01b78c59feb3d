"""Our side: one rank of a plan's program, on a batch that stays in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.workers import PEER_TIMEOUT_S
from orchestrator.execute.device import Channel, Cpu
from orchestrator.execute.distributed import connect
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.parameters import Slot, initial_value
from orchestrator.models import Model, Recipe
from orchestrator.plan import Plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.resolve import model_of, recipe_of
from orchestrator.train.worker import drive


class FixedFeed:
    """The same images and labels at every step, equal on all ranks."""

    def __init__(self, model: Model, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.all_images = torch.randn((batch, *model.input_shape), generator=generator)
        self.all_labels = torch.randint(model.classes, (batch,), generator=generator)

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self.all_images[samples]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self.all_labels[samples]


class Unclocked(Cpu):
    """A processor that does not look at the clock."""

    def mark(self, channel: Channel) -> float:
        return 0.0


class Setting:
    """What both sides of a comparison work on.

    Args:
        plan: how the network is split.
        rank: this process.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.model: Model = model_of(plan)
        self.recipe: Recipe = recipe_of(plan, self.model)
        self.program: Program = compile_plan(plan, self.model)
        self.feed = FixedFeed(self.model, plan.global_batch_size)

    def stages(self) -> list[list[str]]:
        """Names of the layers of every pipeline stage."""
        found: list[list[str]] = [[] for _ in self.program.stages]
        for segment in self.program.segments:
            found[segment.stage] += [layer.name for layer in segment.layers]
        return found


class OurRank:
    """One rank of a program.

    Args:
        clock: note every op's times and read them after every step, as a training run does.
    """

    def __init__(self, setting: Setting, *, clock: bool = True, name: str = "") -> None:
        self.name, self.clock = name or setting.plan.name, clock
        wholes: dict[str, Tensor] = {}

        def value(slot: Slot) -> Tensor:
            return initial_value(slot, setting.recipe.seed, wholes)

        program = setting.program.for_rank(setting.rank)
        self.interpreter = RankInterpreter(
            program, connect(program, None, PEER_TIMEOUT_S), setting.feed, setting.recipe,
            Cpu() if clock else Unclocked(), value,
        )  # fmt: skip

    def step(self, number: int) -> float:
        drive(self.interpreter, number)
        if self.clock:
            self.interpreter.unread().read()
        return float(self.interpreter.loss)


def ops_of(side: OurRank) -> Sequence[object]:
    """The ops that one rank runs in a step."""
    return side.interpreter.ops
