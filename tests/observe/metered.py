"""Runs and predictions that count for Prometheus, small enough to be had in a test."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.models.model import Recipe
from orchestrator.observe.accounting import Accountant
from orchestrator.observe.metrics import RunLabels
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.program import Program, compile_plan
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.export import export
from orchestrator.simulate.predict import simulate_program
from tests.program.small import LENET, small_plan, small_program

# Two stages of two ranks: they send, reduce, wait for each other, and the pipeline has bubbles.
TWO_STAGES = replace(
    small_program(
        LENET,
        "layers: conv1..pool2, ranks: [0, 1], split: batch",
        "layers: fc3..fc5, ranks: [2, 3], split: channel",
        batch=8,
        more="n_microbatches: 2",
    ),
    name="two-stages",
)
DATA_PARALLEL = replace(
    small_program(LENET, "layers: conv1..fc5, ranks: 0..3, split: batch", batch=8),
    name="data-parallel",
)
# Four replicas of two ranks; a prediction of it lists the first one's.
REPLICAS = replace(
    compile_plan(
        small_plan(
            "layers: conv1..fc5, ranks: [0, 1], split: channel", batch=8, more="replicas: 4"
        ),
        LENET, dtype="float32", fold=True,
    ),
    name="replicas",
)  # fmt: skip
ALONE = replace(small_program(LENET, "layers: conv1..fc5, ranks: [0], split: none"), name="alone")


class Training:
    """A run on the local executor that counts its steps for Prometheus."""

    def __init__(self, program: Program, run: str, options: MetricsOptions, **how: bool) -> None:
        self.program, self.recipe = program, Recipe(lr=0.01, seed=1)
        self.executor = LocalExecutor(
            program, RandomFeed(program.model, program.global_batch), self.recipe
        )
        self.accountant = Accountant(program)
        labels = RunLabels(run, program.name, "measured")
        self.metrics = RunMetrics(program, labels, options, **how)
        # This executor knows none. The last rank needs least.
        self.metrics.peaks = {rank: (100 - rank) * 2**20 for rank in program.ranks}
        self.steps = 0

    def step(self) -> None:
        """Train one step."""
        for rank in self.executor.ranks:
            rank.sent = Counter()
        loss = self.executor.step(self.steps)
        times = self.executor.times()
        sent = {rank.rank: rank.sent for rank in self.executor.ranks}
        self.metrics.add_step(times, self.accountant.account(times), sent)
        self.metrics.run.add_step(self.program.global_batch, loss, self.recipe.lr)
        self.steps += 1


def predict(program: Program, run: str, options: MetricsOptions) -> RunMetrics:
    """A prediction that is told to Prometheus."""
    cluster = load_cluster("dgx1-p100")
    return export(simulate_program(program, cluster), cluster, run, options)
