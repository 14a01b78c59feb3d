"""What a plan says of number formats: ``bfloat16``, or ``{compute: bfloat16, send: float32}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from pydantic_core import PydanticKnownError

from orchestrator.plan.problem import Problem, found, listed, nearest, printable, refusal

FORMATS = ("float32", "tfloat32", "float16", "float64", "bfloat16")
HELD = ("float32", "float16", "float64", "bfloat16")  # tfloat32 is of products alone


@dataclass(frozen=True)
class Formats:
    """Number formats one by one; what is left out follows ``compute``.

    Args:
        parameters: in which ranks hold weights while they compute.
        compute: of activations and their gradients.
        reduce: in which gradients of weights are summed.
        send: of activations and their gradients on their way to another rank.
    """

    parameters: str | None = None
    compute: str | None = None
    reduce: str | None = None
    send: str | None = None

    @property
    def written(self) -> dict[str, str]:
        """As a plan has it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


KEYS = tuple(Formats.__dataclass_fields__)
_DESCRIPTIONS = {
    "parameters": "In which ranks hold weights while they compute: that of compute.",
    "compute": "Of activations and their gradients; float32 if left out.",
    "reduce": "In which gradients of weights are summed, over microbatches and ranks; float32 if "
    "left out where compute has fewer bits, else that of compute.",
    "send": "Of activations and their gradients on their way to another rank; that of compute if "
    "left out.",
}


def read_precision(value: object) -> object:
    """A format's name, or a mapping of formats."""
    if value is None or isinstance(value, Formats) or (isinstance(value, str) and value in FORMATS):
        return value
    if not isinstance(value, Mapping):
        names = " or ".join(f"'{name}'" for name in FORMATS)
        raise PydanticKnownError("literal_error", {"expected": names})
    problems = []
    for key, name in value.items():
        if key not in KEYS:
            message = f"unknown key '{printable(str(key))}'; allowed: {listed(KEYS)}"
            near = nearest(key, KEYS)
            problems.append(
                Problem((str(key),), message, f"did you mean {near}?" if near else "remove it")
            )
            continue
        allowed = FORMATS if key == "compute" else HELD
        if name not in allowed:
            near = nearest(name, allowed)
            remedy = f"did you mean {near}?" if near else f"write it like {key}: float32"
            problems.append(Problem((key,), f"{found(name)}; allowed: {listed(allowed)}", remedy))
    if problems:
        raise refusal(problems)
    return Formats(**value)


def read_loss_scale(value: object) -> object:
    """``dynamic``, or a number above zero."""
    if value is None or value == "dynamic":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf:
        return float(value)
    message = f"{found(value)}; allowed: dynamic, or a number above 0"
    raise refusal([Problem((), message, "write loss_scale: dynamic, or loss_scale: 1024")])


LOSS_SCALE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"const": "dynamic"}, {"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]
}


def schema() -> dict[str, Any]:
    """In JSON Schema."""
    return {
        "anyOf": [
            {"enum": list(FORMATS)},
            {
                "type": "object",
                "properties": {
                    key: {
                        "enum": list(FORMATS if key == "compute" else HELD),
                        "description": _DESCRIPTIONS[key],
                    }
                    for key in KEYS
                },
                "additionalProperties": False,
            },
            {"type": "null"},
        ]
    }
