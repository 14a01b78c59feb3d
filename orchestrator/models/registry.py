"""Models by name, and models of the user's own from a Python file."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.alexnet import FAMILY, build_alexnet
from orchestrator.models.fields import as_annotated, check
from orchestrator.models.layer import Layer
from orchestrator.models.lenet import build_lenet5
from orchestrator.models.model import Model
from orchestrator.models.model_file import import_model_file, running, user_error

_BUILDERS: dict[str, Callable[..., Model]] = {
    **{name: partial(build_alexnet, name) for name in FAMILY},
    "lenet5": build_lenet5,
}


def model_names() -> tuple[str, ...]:
    """Names that :func:`build_model` knows."""
    return tuple(_BUILDERS)


@cache
def kind_names() -> tuple[str, ...]:
    """Kinds of the layers that a model can be made of, a user's own apart."""
    from orchestrator import models

    public = [getattr(models, name) for name in models.__all__]
    layers = [x for x in public if isinstance(x, type) and issubclass(x, Layer) and x is not Layer]
    return tuple(sorted({layer.kind for layer in layers}))


def build_model(
    name: str,
    options: Mapping[str, Any],
    location: str = "",
    option_locations: Mapping[str, str] | None = None,
) -> Model:
    """A model of this package by name.

    Args:
        name: one of :func:`model_names`.
        options: ``classes``, ``image_size``, ``width``, ``norm``, as far as the model has them.
        location: where the name stands, for messages.
        option_places: where the options stand.

    Raises:
        InputError: an unknown name, an option the model does not have, a value out of range.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        raise InputError(
            f"there is no model {name!r}; models: {', '.join(_BUILDERS)}",
            location,
            f"model.name: {near[0]}" if near else "",
        )
    builder, locations = _BUILDERS[name], option_locations or {}
    options = _checked(builder, f"model {name}", options, location, locations)
    try:
        return builder(**options)
    except InputError as error:
        raise InputError(error.message, error.location or location, error.remedy) from error


def load_model(
    file: Path,
    function: str,
    options: Mapping[str, Any],
    location: str = "",
    option_locations: Mapping[str, str] | None = None,
) -> Model:
    """A model from the user's file: ``function(**options)`` must return a :class:`Model`.

    The file may import what lies beside it. What it prints goes to standard error.

    Args:
        options: any keywords of the function, held against its annotations.
        location: where the file is named, for messages.
        option_places: where the options stand.

    Raises:
        InputError: no such file or function, an option it does not have or that does not fit, code
            that fails (with its file and line), or no model in return.
    """
    if not file.is_file():
        raise InputError(f"there is no model file {file}", location)
    if file.suffix != ".py":
        raise InputError(f"{file} is not a Python file", location, "a file that ends in .py")
    try:
        imported = import_model_file(file)
    except InputError as error:
        raise InputError(error.message, location, error.remedy) from error
    builder, what = getattr(imported.module, function, None), f"{file.name}:{function}"
    if not callable(builder):
        has = vars(imported.module).items()
        found = ", ".join(n for n, v in has if inspect.isfunction(v))
        raise InputError(
            f"{file} has no function {function!r}; it has: {found or 'none'}", location
        )
    options = _checked(builder, what, options, location, option_locations or {})
    try:
        with running(imported):
            model = builder(**options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and whatever else a user's code may raise
        found_error = user_error(error, f"{what} fails", imported.path.parent)
        raise InputError(found_error.message, location, found_error.remedy) from error
    if not isinstance(model, Model):
        raise InputError(
            f"{what} returned {type(model).__name__}, not a Model",
            location,
            "return orchestrator.models.Model(name, input_shape, layers)",
        )
    return model


def _checked(
    builder: Callable[..., Model],
    what: str,
    options: Mapping[str, Any],
    location: str,
    locations: Mapping[str, str],
) -> dict[str, Any]:
    """The options as the builder's signature asks for them."""
    allowed = _keywords(builder)
    if allowed is None:
        return dict(options)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in allowed.values())
    names = [n for n, p in allowed.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    extra = [name for name in options if name not in names]
    if extra and not takes_any:
        near = difflib.get_close_matches(extra[0], names, n=1)
        raise InputError(
            f"{what} has no option {extra[0]!r}; it has: {', '.join(names) or 'none'}",
            locations.get(extra[0], location),
            f"did you mean {near[0]}?" if near else "remove it",
        )
    missing = [
        n for n in names if allowed[n].default is inspect.Parameter.empty and n not in options
    ]
    if missing:
        raise InputError(
            f"{what} needs the option {missing[0]!r}", location, f"--set model.{missing[0]}=..."
        )
    found = {}
    for name, value in options.items():
        hint = allowed[name].annotation if name in names else inspect.Parameter.empty
        if hint is not inspect.Parameter.empty:
            value = as_annotated(value, hint)
            check(value, hint, f"{what}: option {name}", locations.get(name, location))
        found[name] = value
    return found


def _keywords(builder: Callable[..., Model]) -> Mapping[str, inspect.Parameter] | None:
    """A builder's parameters, annotations as types where they can be read; None: not told."""
    for evaluated in (True, False):
        try:
            return inspect.signature(builder, eval_str=evaluated).parameters
        except ValueError:
            return None
        except Exception:  # evaluating what a user wrote may raise anything
            continue
    return None
