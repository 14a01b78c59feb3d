"""Number formats that a run trains in."""

from __future__ import annotations

from orchestrator.errors import InputError
from orchestrator.plan import Plan
from orchestrator.program.precision import precision_of

TRAINED = ("float32", "float64", "bfloat16")


def check_trained(plan: Plan, *, processor: bool) -> None:
    """Refuse a format that a run does not train in.

    Args:
        processor: the ranks compute on processors, which have no tfloat32.

    Raises:
        InputError: the plan asks for another format.
    """
    compute = precision_of(plan).compute
    allowed = TRAINED if processor else (*TRAINED, "tfloat32")
    if compute in allowed:
        return
    if compute == "tfloat32":
        why = "a processor has no products in tfloat32"
    else:
        why = (
            f"a run does not train in {compute}: it does not scale the loss, and without that "
            "small gradients are lost in it"
        )
    raise InputError(
        f"{why}; allowed: {', '.join(allowed)}",
        plan.location(("training", "precision")),
        f"training.precision: float32, or --set training.precision=float32; simulate and show take "
        f"{compute}",
    )
