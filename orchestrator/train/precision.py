"""Number formats that a run trains in."""

from __future__ import annotations

from orchestrator.errors import InputError
from orchestrator.models.model import Recipe
from orchestrator.plan import Plan
from orchestrator.program.precision import precision_of


def check_trained(plan: Plan, recipe: Recipe, *, processor: bool) -> None:
    """Refuse a format that the ranks' devices do not have, or that a run cannot follow.

    Args:
        processor: the ranks compute on processors, which have no tfloat32.

    Raises:
        InputError: the plan asks for tfloat32 on processors, or for a dynamic loss scale where
            ranks would have to agree on it.
    """
    if processor and precision_of(plan).compute == "tfloat32":
        raise InputError(
            "a processor has no products in tfloat32; allowed: float32, bfloat16, float16, float64",
            plan.location(("training", "precision")),
            "training.precision: float32, or --set training.precision=float32; simulate and show "
            "take tfloat32",
        )
    if recipe.loss_scale == "dynamic" and (plan.world_size > 1 or plan.training.layer_batch):
        what = "layer_batch" if plan.world_size == 1 else f"{plan.world_size} ranks"
        raise InputError(
            f"a dynamic loss scale with {what}: whether an update is left out is decided on one "
            "rank, from all gradients of a step; allowed: one rank, or a loss scale that stays",
            plan.location(("training", "loss_scale")),
            "training.loss_scale: 1024, or training.precision: bfloat16, which needs none",
        )
