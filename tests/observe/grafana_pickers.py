"""What a dashboard asks once its pickers are resolved, as Grafana does it on opening.

From `metric_find_query.ts` of Grafana's Prometheus data source, which did not change from 7 to 13:
a row of ``query_result`` is the text ``name{label="value",...} value milliseconds``, in the order
of the answer. A picker takes the first group of its regex out of it, keeps what is different, and
picks what it is told to if that is offered, else the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.prometheus_server import Prometheus

Json = dict[str, Any]
RANGE = "15m"
_VARIABLE = re.compile(r"\$([a-z]\w*)")


def resolved(expr: str, values: Mapping[str, str]) -> str:
    """A query or a title with its variables replaced."""
    filled = _VARIABLE.sub(lambda match: values[match[1]], expr)
    return filled.replace("$__range", RANGE)


def offered(server: Prometheus, variable: Json, values: Mapping[str, str]) -> list[str]:
    """The values of a picker, in order."""
    query = resolved(variable["query"], values)
    if match := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
        found = server.ask("series", **{"match[]": match[1]})
        texts = [series[match[2]] for series in found]
    elif match := re.fullmatch(r"query_result\((.*)\)", query):
        texts = [_text(row) for row in server.ask("query", query=match[1])["result"]]
    else:
        raise AssertionError(f"Grafana would not know {query}")
    if variable["regex"]:
        regex = re.compile(variable["regex"].removeprefix("/").removesuffix("/"))
        texts = [match[1] for text in texts if (match := regex.search(text))]
    texts = list(dict.fromkeys(texts))
    if variable["sort"] == 3:
        texts.sort(key=int)
    assert variable["sort"] in (0, 3)
    return texts


def opened(server: Prometheus, board: Json, **picked: str) -> dict[str, str]:
    """Every picker's value: the one in `picked`, else the one that the dashboard opens with."""
    values: dict[str, str] = {}
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        name, default = variable["name"], variable["current"].get("value")
        options = offered(server, variable, values)
        if name in picked:
            assert picked[name] in options, (name, options)
            values[name] = picked[name]
        elif variable["includeAll"]:
            assert default == ["$__all"]
            values[name] = variable["allValue"]
        elif default in options:
            values[name] = default
        else:
            values[name] = options[0] if options else ""
    return values


def _text(row: Json) -> str:
    labels = ",".join(f'{k}="{v}"' for k, v in row["metric"].items() if k != "__name__")
    moment, value = row["value"]
    return f"{row['metric'].get('__name__', '')}{{{labels}}} {value} {moment * 1000:.0f}"
