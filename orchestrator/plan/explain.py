"""Turns pydantic's findings into problems as a user reads them: found, allowed, remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.plan.layers import ALLOWED
from orchestrator.plan.problem import PROBLEM, Path, Problem, found, listed, nearest, printable
from orchestrator.plan.schema import Plan

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
}

_PATTERNS: dict[str | int, str] = {
    "name": "letters, digits and . _ -, beginning with a letter or digit",
    "layer_batch": ALLOWED,
    "function": "the name of a Python function",
}


@dataclass(frozen=True)
class Format:
    """A kind of file that problems are told about.

    Args:
        noun: such as ``plan``.
        root: the pydantic model of the whole file.
        remedies: for keys that are often written and wrong, what to write instead.
    """

    noun: str
    root: type[BaseModel]
    remedies: Mapping[str, str] = field(default_factory=dict)


PLAN = Format("plan", Plan)


def explain(error: ValidationError, form: Format = PLAN) -> list[Problem]:
    """Every problem in a file, in the order of its keys.

    A version we do not read makes all else noise, so it then stands alone.
    """
    problems: list[Problem] = []
    for details in error.errors(include_url=False):
        path: Path = details["loc"]
        if path[-1:] == ("[key]",) and details["type"] != "extra_forbidden":
            path = path[:-1]  # a mapping's key is at fault, and stands before
        if details["type"] == PROBLEM:
            inner: tuple[Problem, ...] = details["ctx"]["problems"]
            problems += [problem.under(path) for problem in inner]
        elif not (details["type"] == "too_short" and isinstance(details["input"], list)):
            problems.append(_problem(form, path, details))
    versions = [problem for problem in problems if problem.path == ("schema_version",)]
    return versions or problems


def _problem(form: Format, path: Path, details: ErrorDetails) -> Problem:
    kind, value = details["type"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    key = str(path[-1]) if path else ""
    if kind == "missing":
        return Problem(
            path, f"missing; needed: {_description(form, path)}", f"add {_example(form, path)}"
        )
    if kind == "extra_forbidden":
        return _unknown(form, path)
    if kind == "literal_error":
        names = _words(context["expected"])
        near = nearest(value, names) if isinstance(value, str) else ""
        remedy = f"did you mean {near}?" if near else _like(form, path)
        return Problem(path, f"{found(value)}; allowed: {listed(names)}", remedy)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        allowed = words.format(f"{bound:g}" if isinstance(bound, float) else bound)
        return Problem(path, f"{found(value)}; allowed: {allowed}", _like(form, path))
    if kind in _KINDS:
        message = f"{_found_type(value)}; allowed: {_KINDS[kind]}"
        return Problem(path, message, _retype(form, kind, key, value, path))
    if kind == "string_pattern_mismatch":
        allowed = next((_PATTERNS[part] for part in path[::-1] if part in _PATTERNS), "")
        message = f"{found(value)}; allowed: {allowed}"
        return Problem(path, message, _like(form, path))
    if kind in ("string_too_short", "string_too_long"):
        most = "at least 1 character" if kind == "string_too_short" else f"{context['max_length']}"
        allowed = most if kind == "string_too_short" else f"at most {most} characters"
        size = len(value) if isinstance(value, str) else 0
        message = f"found text of {size} characters; allowed: {allowed}"
        return Problem(path, message, _like(form, path))
    return Problem(path, f"{found(value)}; {details['msg']}", _like(form, path))


def _words(expected: str) -> list[str]:
    """``'a', 'b' or 'c'``, as pydantic lists the members of a Literal."""
    return [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]


def _unknown(form: Format, path: Path) -> Problem:
    owner, key = _owner(form, path[:-1]), str(path[-1])
    fields = list(owner.model_fields) if owner else []
    message = f"unknown key '{printable(key)}'; allowed: {listed(fields)}"
    if key in form.remedies:
        return Problem(path, message, form.remedies[key])
    if near := nearest(key, fields):
        return Problem(path, message, f"did you mean {near}?")
    for section, info in form.root.model_fields.items():
        model = _model_in(info.annotation)
        if info.annotation is model and model is not owner and model and key in model.model_fields:
            return Problem(path, message, f"write it under {section}: {section}: {{{key}: ...}}")
    if owner is not form.root and key in form.root.model_fields:
        remedy = f"write it at the top of the {form.noun}, without indentation"
        return Problem(path, message, remedy)
    return Problem(path, message, "remove it")


def _found_type(value: object) -> str:
    return f"{found(value)} (text)" if isinstance(value, str) else found(value)


def _retype(form: Format, kind: str, key: str, value: object, path: Path) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return f"put it in quotes: '{str(value).lower()}'"
    if isinstance(value, str) and kind in ("int_type", "float_type"):
        if value.strip().isdigit() and len(value) < 20:
            return f"write {value.strip()}, without quotes"
        if path[:1] == ("placement",) and ".." in value:
            return f"write {path[-2]}: {printable(value)}, without brackets"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}" if abs(value) < 1e15 else "write a whole number"
    if kind == "model_type" and value is None and path in (("training",),):
        return "write training: {}, or leave the key out"
    return _like(form, path)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, by itself, in a list or where it may be left out."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _owner(form: Format, path: Path) -> type[BaseModel] | None:
    """The model whose keys stand at a path."""
    owner: type[BaseModel] | None = form.root
    for part in path:
        if isinstance(part, int):
            continue
        if owner is None or part not in owner.model_fields:
            return None
        owner = _model_in(owner.model_fields[part].annotation)
    return owner


def _field(form: Format, path: Path) -> FieldInfo | None:
    """The field at a path, or the nearest one around it."""
    for length in range(len(path), 0, -1):
        owner = _owner(form, path[: length - 1])
        if owner and path[length - 1] in owner.model_fields:
            return owner.model_fields[str(path[length - 1])]
    return None


def _description(form: Format, path: Path) -> str:
    info = _field(form, path)
    return (info.description or "").rstrip(".") if info else "something else"


def _example(form: Format, path: Path) -> str:
    """``ranks: [0, 1]``: the field at a path as it may be written."""
    info = _field(form, path)
    if info is None or not info.examples:
        return f"one in a shipped {form.noun}"
    name = next((str(part) for part in reversed(path) if _named(form, part, info)), "")
    return f"{name}: {_flow(info.examples[0])}"


def _like(form: Format, path: Path) -> str:
    return f"write it like {_example(form, path)}"


def _named(form: Format, part: str | int, info: FieldInfo) -> bool:
    return any(model.model_fields.get(str(part)) is info for model in _models(form.root))


def _models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it holds."""
    yield root
    for info in root.model_fields.values():
        if inner := _model_in(info.annotation):
            yield from _models(inner)


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
