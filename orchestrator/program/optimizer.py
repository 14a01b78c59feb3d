"""Whether a plan's optimizer can work where the plan puts the parameters."""

from __future__ import annotations

from orchestrator.errors import InputError
from orchestrator.models.box import whole
from orchestrator.optimizers import Optimizer
from orchestrator.plan import Plan
from orchestrator.program.segments import Cut


def check_optimizer(plan: Plan, optimizer: Optimizer, cut: Cut) -> None:
    """Refuse a sharding of nothing, and an optimizer that would need more than a rank has.

    An optimizer that needs the norm of a whole parameter does not get it where ranks hold parts of
    one: the parts' norms would have to be summed, and there is no such exchange.

    Raises:
        InputError: with the line of the plan.
    """
    shares = any(
        bucket.parameters and len(bucket.ranks) * plan.replicas > 1
        for buckets in cut.buckets
        for bucket in buckets
    )
    zero1 = plan.optimizer_sharding == "zero1"
    place = plan.location(("optimizer_sharding",))
    if zero1 and not shares:
        raise InputError(
            "found zero1, and no two ranks hold the same parameters, so there is no state to "
            "share out; allowed: none, or layers that are replicated or split by batch",
            place,
            "optimizer_sharding: none, or replicas: 2",
        )
    if not optimizer.needs_norms:
        return
    if zero1:
        raise InputError(
            f"found zero1 beside optimizer {optimizer.name}, which needs the norm of each whole "
            "parameter, and a shard has a part of it; allowed: none",
            place,
            f"optimizer_sharding: none, or another optimizer than {optimizer.name}",
        )
    for segment in cut.segments:
        for part in segment.parts.values():
            for layer in part.layers:
                for tile in layer.tiles:
                    spec = layer.sized.spec(tile.parameter)
                    if spec.decays and not spec.tied_to and tile.box != whole(spec.shape):
                        _refuse_part(plan, optimizer, f"{layer.sized.name}.{spec.name}")


def _refuse_part(plan: Plan, optimizer: Optimizer, parameter: str) -> None:
    raise InputError(
        f"optimizer {optimizer.name} needs the norm of each whole parameter, and the placement "
        f"cuts {parameter} over ranks; allowed: splits that leave parameters whole, such as batch, "
        "height or none, and replicas",
        plan.location(("training", "optimizer")),
        f"another optimizer than {optimizer.name}, or another split for this layer",
    )
