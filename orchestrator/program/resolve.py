"""From a plan to the model it names, and to the recipe that it trains it by."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.model import Model, Recipe
from orchestrator.models.registry import build_model, load_model
from orchestrator.optimizers import Optimizer
from orchestrator.plan import Plan
from orchestrator.program.precision import precision_of


def model_of(plan: Plan) -> Model:
    """The model of a plan, built in or from the user's file, with the plan's options.

    Raises:
        InputError: no such model or file, an option it does not have, a file that fails.
    """
    choice, options = plan.model, plan.model.options
    places = {option: plan.location(("model", option)) for option in options}
    if choice.name is not None:
        return build_model(choice.name, options, plan.location(("model",)), places)
    file, function = plan.model_file, choice.function
    assert file is not None  # the plan's schema has seen to both
    assert function is not None
    return load_model(file, function, options, plan.location(("model", "file")), places)


def recipe_of(plan: Plan, model: Model) -> Recipe:
    """The model's recipe with the plan's overrides.

    Raises:
        InputError: the plan gives a momentum to an optimizer of the recipe that has none, or
            options that do not go together.
    """
    own, given = model.recipe, plan.training
    updates = _optimizer(plan, own)
    options = updates.options()
    return Recipe(
        lr=own.lr if given.lr is None else given.lr,
        momentum=updates.momentum if "momentum" in options else own.momentum,  # type: ignore[attr-defined]
        weight_decay=updates.weight_decay,  # type: ignore[attr-defined]
        seed=own.seed if given.seed is None else given.seed,
        optimizer=updates,
        loss_scale=_loss_scale(plan, own),
    )


def _loss_scale(plan: Plan, own: Recipe) -> Any:
    """The plan's, else in float16 the recipe's or a dynamic one.

    Raises:
        InputError: the plan's formats have float32's range.
    """
    given, compute = plan.training.loss_scale, precision_of(plan).compute
    if compute == "float16":
        return given or (own.loss_scale if own.loss_scale != 1 else "dynamic")
    if given is not None:
        raise InputError(
            f"found loss_scale beside compute: {compute}, whose range holds every gradient; "
            "allowed: beside float16",
            plan.location(("training", "loss_scale")),
            "remove loss_scale, or write training.precision: float16",
        )
    return 1.0


def _optimizer(plan: Plan, own: Recipe) -> Optimizer:
    """The plan's optimizer with all its options, or the recipe's with what the plan changes."""
    given, choice = plan.training, plan.training.optimizer
    kind = type(own.updates) if choice is None else choice.kind
    options = kind.options()
    if kind is type(own.updates):
        values = {name: getattr(own.updates, name) for name in options}
    elif "momentum" in options:  # the recipe's are of an update with momentum
        values = {"momentum": own.momentum, "weight_decay": own.weight_decay}
    else:
        values = {}
    for name in ("momentum", "weight_decay"):
        value = getattr(given, name)
        if value is None:
            continue
        if name not in options:
            raise InputError(
                f"found {name}, and the recipe of {plan.model.name or plan.model.file} is of "
                f"{kind.name}, which has none; allowed: {', '.join(options)}, under optimizer",
                plan.location(("training", name)),
                f"remove {name}, or write training.optimizer: sgd",
            )
        values[name] = value
    values |= dict(choice.options) if choice else {}
    try:
        return kind(**values)
    except InputError as error:
        place = plan.location(("training", "optimizer"))
        raise InputError(error.message, place, error.remedy) from error
