"""From a plan to the model it names."""

from __future__ import annotations

from orchestrator.models.model import Model
from orchestrator.models.registry import build_model, load_model
from orchestrator.plan import Plan


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
