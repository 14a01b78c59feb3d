"""Writes a plan as the YAML that a person would have written."""

from __future__ import annotations

from math import inf

import yaml

from orchestrator.plan.schema import Entry, Plan
from orchestrator.plan.shares import Shares
from orchestrator.plan.strict_yaml import RESOLVERS


class _OnOneLine(dict[str, object]):
    """A mapping to be written as ``{key: value}``."""


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for a number or a boolean."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    _OnOneLine,
    lambda dumper, data: dumper.represent_mapping(
        "tag:yaml.org,2002:map", data.items(), flow_style=True
    ),
)
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=bool(data) and not isinstance(data[0], dict)
    ),
)
for _tag, _pattern, _first in RESOLVERS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def write_plan(plan: Plan) -> str:
    """YAML that loads back to an equal plan; every key is written, defaults too."""
    data: dict[str, object] = plan.model_dump(exclude_none=True)
    data["model"] = _OnOneLine(plan.model.model_dump(exclude_none=True))
    data["training"] = plan.training.model_dump(exclude_none=True, exclude={"dtype"})
    data["placement"] = [_entry(entry) for entry in plan.placement]
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=inf,
    )


def _entry(entry: Entry) -> _OnOneLine:
    ranks = entry.ranks
    in_a_row = ranks == tuple(range(ranks[0], ranks[0] + len(ranks)))
    data = _OnOneLine(layers=entry.layers if isinstance(entry.layers, str) else list(entry.layers))
    data["ranks"] = f"{ranks[0]}..{ranks[-1]}" if in_a_row and len(ranks) > 4 else list(ranks)
    data["split"] = (
        entry.split if isinstance(entry.split, str) else _OnOneLine(dict(entry.split.axes))
    )
    if isinstance(entry.shares, Shares):
        data["shares"] = _OnOneLine({axis: list(parts) for axis, parts in entry.shares.axes})
    elif entry.shares is not None:
        data["shares"] = list(entry.shares)
    if entry.exchange != "gather":
        data["exchange"] = entry.exchange
    return data
