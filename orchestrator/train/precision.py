"""Number formats that a run trains in."""

from __future__ import annotations

from orchestrator.errors import InputError
from orchestrator.plan import Plan

TRAINED = ("float32", "float64")


def check_trained(plan: Plan) -> None:
    """Refuse a format in which weights do not learn.

    Weights held in bfloat16 have 8 significant bits: an update below 1/512 of its weight rounds
    to nothing. Training in it needs a float32 master copy of every weight, which a run does not
    keep. On top of that torch's fused SGD leaves out whole vectors of bfloat16 weights on a
    processor (pytorch issue 191763).

    Raises:
        InputError: the plan asks for another format.
    """
    dtype = plan.training.precision
    if dtype is None or dtype in TRAINED:
        return
    raise InputError(
        f"a run does not train in {dtype}: it keeps no float32 master weights, and without them "
        f"most updates round to nothing; allowed: {', '.join(TRAINED)}",
        plan.location(("training", "precision")),
        "training.precision: float32, or --set training.precision=float32; simulate and show take "
        f"{dtype}",
    )
