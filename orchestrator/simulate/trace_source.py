"""A prediction as one process of a trace, beside a measured run or alone."""

from __future__ import annotations

from orchestrator.observe.trace import Source
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.memory import peak_memory
from orchestrator.simulate.predict import Prediction


def trace_source(prediction: Prediction, cluster: Cluster) -> Source:
    """The step simulated on a cluster, with every rank's memory over time."""
    memories = peak_memory(prediction.program, series=True, processor=cluster.on_processors)
    memory = {m.rank: m.series for m in memories}
    return Source("simulated", prediction.program, [prediction.times], memory)
