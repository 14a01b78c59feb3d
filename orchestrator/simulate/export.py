"""A simulated step under the names of a run's metrics, to be laid over a measured run's."""

from __future__ import annotations

from collections import Counter, defaultdict

import orchestrator
from orchestrator.observe.metrics import Info, RunLabels
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.program.ledger import Edge, edges
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.predict import Prediction


def export(
    prediction: Prediction, cluster: Cluster, run: str, options: MetricsOptions
) -> RunMetrics:
    """Count the one step of a prediction; of folded replicas the first one's ranks.

    Args:
        run: what to call it.

    Raises:
        InputError: it cannot listen where `options` say.
    """
    program = prediction.program
    labels = RunLabels(run, program.name, "simulated")
    metrics = RunMetrics(program, labels, options, one_page=True)
    sent: defaultdict[int, Counter[Edge]] = defaultdict(Counter)
    for edge, size in edges(program).items():
        sent[edge.from_rank][edge] = size
    metrics.add_step(prediction.times, prediction.account, sent)
    metrics.run.add_step(program.global_batch, loss=None, learning_rate=None)
    metrics.peaks = {m.rank: m.peak_bytes for m in prediction.memory}
    devices = sorted({cluster.device(rank).name for rank in program.ranks})
    metrics.run.info = Info(orchestrator.__version__, "", "", "", ", ".join(devices))
    return metrics
