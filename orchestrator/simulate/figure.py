"""A figure of a cluster file, and where it comes from.

A figure is a plain number, or a mapping with the number in it::

    memory_GBps: 192.4
    memory_GBps: {value: 192.4, source: "data sheet, 2010"}
    memory_GBps: {value: 192.4, assumed: true}

Its source is the nearest one: its own, its block's, the file's. ``assumed: true`` counts as one
and says that there is none. A figure for which nothing is found is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from orchestrator.plan.problem import Path, Problem, dotted, found, listed, nearest, refusal

ASSUMED = "assumed"
Origin = str | None
"""A source in words, ``ASSUMED``, or None where nothing says."""


@dataclass(frozen=True)
class Figure:
    """A number with its own source, where it has one.

    Args:
        value: finite, in the unit of its key.
        source: in words, or None.
        assumed: there is none.
    """

    value: float
    source: str | None = None
    assumed: bool = False


@dataclass(frozen=True)
class Provenance:
    """A figure of a file as written.

    Args:
        key: dotted.
        value: in that key's unit.
        source: in words; None if the figure is assumed.
    """

    key: str
    value: float
    source: str | None


class Part(BaseModel):
    """Strict and unchangeable: ``"3"`` is not 3, unknown keys are errors."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class Block(Part):
    """A mapping whose figures may share one ``source`` or one ``assumed: true``."""

    source: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="Where the figures come from, with the date.",
        examples=["data sheet, 2010"],
    )
    assumed: Literal[True] | None = Field(
        default=None, description="The figures have no source.", examples=[True]
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Block:
        if self.source is not None and self.assumed:
            message = "found beside source; allowed: one of the two"
            remedy = "keep source, or mark single figures {value: ..., assumed: true}"
            raise refusal([Problem(("assumed",), message, remedy)])
        return self


def _number(value: object, path: Path, accepts: Callable[[float], bool], allowed: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and accepts(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    message = f"{found(value)}{' (text)' if isinstance(value, str) else ''}; allowed: {allowed}"
    remedy = "write a plain number in the unit that ends the key, without quotes"
    raise refusal([Problem(path, message, remedy)])


def _reader(accepts: Callable[[float], bool], allowed: str) -> Callable[[object], Figure]:
    def read(value: object) -> Figure:
        if isinstance(value, Figure):
            return value
        if not isinstance(value, dict):
            return Figure(_number(value, (), accepts, allowed))
        keys = ("value", "source", "assumed")
        for key in value:
            if key not in keys:
                near = nearest(key, keys)
                message = f"unknown key '{key}'; allowed: {listed(keys)}"
                remedy = f"did you mean {near}?" if near else "remove it"
                raise refusal([Problem((key,), message, remedy)])
        if "value" not in value:
            message = f"{found(value)} without value; allowed: {allowed}"
            raise refusal([Problem((), message, "write {value: 1.5, assumed: true}")])
        number = _number(value["value"], ("value",), accepts, allowed)
        source, assumed = value.get("source"), value.get("assumed", False)
        if "source" in value and (not isinstance(source, str) or not source.strip()):
            message = f"{found(source)}; allowed: text"
            raise refusal([Problem(("source",), message, "write where it comes from, and when")])
        if "assumed" in value and assumed is not True:
            message = f"{found(assumed)}; allowed: true"
            raise refusal([Problem(("assumed",), message, "write assumed: true, or a source")])
        if source is not None and assumed:
            message = "found beside source; allowed: one of the two"
            raise refusal([Problem(("assumed",), message, "keep one of the two")])
        return Figure(number, source, bool(assumed))

    return read


def _schema(bounds: dict[str, Any]) -> dict[str, Any]:
    number = {"type": "number", **bounds}
    block = {
        "type": "object",
        "properties": {
            "value": number,
            "source": {"type": "string", "minLength": 1},
            "assumed": {"const": True},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [number, block]}


# No figure of any machine is outside of these, in its key's unit. Within them every time that is
# computed is finite, so whatever a file says has an answer or a message.
LEAST, MOST = 1e-9, 1e12


def _from(least: float, most: float, allowed: str) -> PlainValidator:
    return PlainValidator(_reader(lambda x: least <= x <= most, allowed))


def _bounds(least: float, most: float) -> WithJsonSchema:
    return WithJsonSchema(_schema({"minimum": least, "maximum": most}))


Positive = Annotated[
    Figure,
    _from(LEAST, MOST, f"a number more than 0, from {LEAST:g} to {MOST:g}"),
    _bounds(LEAST, MOST),
]
NotNegative = Annotated[
    Figure, _from(0, MOST, f"a number, 0 or more, at most {MOST:g}"), _bounds(0, MOST)
]
Share = Annotated[Figure, _from(0, 1, "a share, 0 to 1"), _bounds(0, 1)]
Fraction = Annotated[
    Figure,
    _from(LEAST, 1, "a fraction of the peak, more than 0 and at most 1"),
    _bounds(LEAST, 1),
]
# More than 1 is no mistake: F(4x4, 3x3) computes a quarter of the multiplications that are counted
# (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4).
ConvFraction = Annotated[
    Figure,
    _from(LEAST, 4, "a fraction of the peak, more than 0 and at most 4 (1 without Winograd's)"),
    _bounds(LEAST, 4),
]


def _walk(part: BaseModel, path: Path, origin: Origin) -> Iterator[tuple[Path, Figure, Origin]]:
    """Every figure under ``part``, its path and its nearest source."""
    if isinstance(part, Block):
        origin = part.source or (ASSUMED if part.assumed else origin)
    for name, value in part:
        inner = (*path, name)
        if isinstance(value, Figure):
            yield inner, value, value.source or (ASSUMED if value.assumed else origin)
        elif isinstance(value, BaseModel):
            yield from _walk(value, inner, origin)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _walk(item, (*inner, i), origin)


def _overridden(path: Path, overrides: Mapping[Path, str]) -> str | None:
    """The command-line option that set a figure, by itself or with its block."""
    return next(
        (overrides[path[:n]] for n in range(len(path), 0, -1) if path[:n] in overrides), None
    )


def unsourced(part: BaseModel, overrides: Mapping[Path, str]) -> list[Problem]:
    """A problem for every figure that has neither a source nor ``assumed: true`` around it."""
    return [
        Problem(
            path,
            f"found {figure.value:g} without a source; allowed: source or assumed: true "
            "in its own braces, in its block or at the top of the file",
            f"write {path[-1]}: {{value: {figure.value:g}, assumed: true}}, or name its source",
        )
        for path, figure, origin in _walk(part, (), None)
        if origin is None and _overridden(path, overrides) is None
    ]


def provenances(part: BaseModel, overrides: Mapping[Path, str]) -> tuple[Provenance, ...]:
    """Every figure of a checked file, as written; what an option set has that as its source."""
    return tuple(
        Provenance(
            dotted(path),
            figure.value,
            _overridden(path, overrides) or (None if origin is ASSUMED else origin),
        )
        for path, figure, origin in _walk(part, (), None)
    )
