"""Models by name, and models of the user's own from a Python file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.alexnet import FAMILY, build_alexnet
from orchestrator.models.lenet import build_lenet5
from orchestrator.models.model import Model

_BUILDERS: dict[str, Callable[..., Model]] = {
    **{name: partial(build_alexnet, name) for name in FAMILY},
    "lenet5": build_lenet5,
}


def model_names() -> tuple[str, ...]:
    """Names that :func:`build_model` knows."""
    return tuple(_BUILDERS)


def build_model(name: str, options: Mapping[str, Any], place: str = "") -> Model:
    """A model of this package by name.

    Args:
        name: one of :func:`model_names`.
        options: ``classes``, ``image_size``, ``width``, ``norm``, as far as the model has them.
        place: where the name stands, for the message.

    Raises:
        InputError: an unknown name, an option the model does not have, a value out of range.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        raise InputError(
            f"there is no model {name!r}; models: {', '.join(_BUILDERS)}",
            place,
            f"model.name: {near[0]}" if near else "",
        )
    return _call(_BUILDERS[name], f"model {name}", options, place)


def load_model(file: Path, function: str, options: Mapping[str, Any], place: str = "") -> Model:
    """A model from the user's file: ``function(**options)`` must return a :class:`Model`."""
    if not file.is_file():
        raise InputError(f"there is no model file {file}", place)
    spec = importlib.util.spec_from_file_location(f"_orchestrator_model_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file", place, "a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends in sys.exit() is no model file
        raise InputError(
            f"{file} fails on import: {type(error).__name__}: {error}", place
        ) from error
    builder = getattr(module, function, None)
    if not callable(builder):
        found = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v))
        raise InputError(f"{file} has no function {function!r}; it has: {found or 'none'}", place)
    try:
        model = _call(builder, f"{file.name}:{function}", options, place)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{file.name}:{function} fails: {type(error).__name__}: {error}", place
        ) from error
    if not isinstance(model, Model):
        raise InputError(
            f"{file.name}:{function} returned {type(model).__name__}, not a Model",
            place,
            "return orchestrator.models.Model(name, input_shape, layers)",
        )
    return model


def _call(
    builder: Callable[..., Model], what: str, options: Mapping[str, Any], place: str
) -> Model:
    allowed = inspect.signature(builder).parameters
    extra = [k for k in options if k not in allowed]
    if extra and not any(p.kind is p.VAR_KEYWORD for p in allowed.values()):
        raise InputError(f"{what} has no option {extra[0]!r}; it has: {', '.join(allowed)}", place)
    try:
        return builder(**options)
    except InputError as error:
        raise InputError(error.message, error.place or place, error.remedy) from error
