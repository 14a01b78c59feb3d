"""What a plan says of the optimizer: ``adamw``, or ``{name: adamw, betas: [0.9, 0.95]}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.optimizers import OPTIMIZERS, Optimizer
from orchestrator.plan.problem import Problem, found, listed, nearest, printable, refusal


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer and some of its options; what is left out the model's recipe fills in.

    Args:
        options: name and value, in the order of the plan.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> type[Optimizer]:
        """Its row in the table."""
        return OPTIMIZERS[self.name]

    @property
    def written(self) -> str | dict[str, Any]:
        """As a plan has it."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options}
        return {"name": self.name, **plain} if plain else self.name


def read_optimizer(value: object) -> object:
    """An optimizer's name, or a mapping with its name and options."""
    if value is None or isinstance(value, OptimizerChoice):
        return value
    if isinstance(value, str):
        return OptimizerChoice(_known(value, ()))
    if not isinstance(value, Mapping):
        message = f"{found(value)}; allowed: {listed(OPTIMIZERS)}, or a mapping with a name"
        raise refusal([Problem((), message, "write optimizer: {name: adamw}")])
    if "name" not in value:
        message = f"missing; needed: one of {listed(OPTIMIZERS)}"
        raise refusal([Problem(("name",), message, "add name: adamw")])
    kind = OPTIMIZERS[_known(value["name"], ("name",))]
    options = kind.options()
    problems, read = [], []
    for key, given in value.items():
        if key == "name":
            continue
        if key not in options:
            problems.append(_unknown(str(key), kind))
            continue
        one = options[key].read(given)
        if one is None:
            message = f"{found(given)}; allowed: {options[key].allowed}"
            problems.append(Problem((key,), message, f"write it like {_example(key, kind)}"))
        read.append((key, one))
    if problems:
        raise refusal(problems)
    return OptimizerChoice(kind.name, tuple(read))


def _known(name: object, path: tuple[str, ...]) -> str:
    if isinstance(name, str) and name in OPTIMIZERS:
        return name
    near = nearest(name, OPTIMIZERS)
    remedy = f"did you mean {near}?" if near else "write it like name: adamw"
    raise refusal([Problem(path, f"{found(name)}; allowed: {listed(OPTIMIZERS)}", remedy)])


def _unknown(key: str, kind: type[Optimizer]) -> Problem:
    options = kind.options()
    message = f"{kind.name} has no option '{printable(key)}'; allowed: {listed(options)}"
    near = nearest(key, options)
    others = [other.name for other in OPTIMIZERS.values() if key in other.options()]
    remedy = f"{key} is an option of {listed(others)}" if others else "remove it"
    if key in ("lr", "seed"):
        remedy = f"write it under training: training: {{{key}: ...}}"
    return Problem((key,), message, f"did you mean {near}?" if near else remedy)


def _example(key: str, kind: type[Optimizer]) -> str:
    default = kind.options()[key].default
    if isinstance(default, tuple):
        return f"{key}: [{', '.join(f'{x:g}' for x in default)}]"
    return f"{key}: {str(default).lower() if isinstance(default, bool) else f'{default:g}'}"


def schema() -> dict[str, Any]:
    """In JSON Schema."""
    return {
        "anyOf": [
            {"enum": list(OPTIMIZERS)},
            *(
                {
                    "type": "object",
                    "description": kind.summary,
                    "properties": {
                        "name": {"const": name},
                        **{key: one.schema for key, one in kind.options().items()},
                    },
                    "required": ["name"],
                    "additionalProperties": False,
                }
                for name, kind in OPTIMIZERS.items()
            ),
            {"type": "null"},
        ]
    }
