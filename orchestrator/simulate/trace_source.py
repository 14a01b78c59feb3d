"""A prediction as one process of a trace, beside a measured run or alone."""

from __future__ import annotations

from orchestrator.observe.trace import Source
from orchestrator.simulate.memory import peak_memory
from orchestrator.simulate.predict import Prediction


def trace_source(prediction: Prediction) -> Source:
    """The simulated step, with every rank's memory over time."""
    memory = {m.rank: m.series for m in peak_memory(prediction.program, series=True)}
    return Source("simulated", prediction.program, [prediction.times], memory)
