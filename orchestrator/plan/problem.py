"""One thing wrong with a plan, how it is worded, and how several become one ``InputError``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pydantic_core import PydanticCustomError

from orchestrator.errors import InputError

Path = tuple[str | int, ...]
"""Where a value stands in a plan: ``("placement", 1, "ranks")``."""

PROBLEM = "plan_problem"
"""The pydantic error type that carries our own :class:`Problem` objects."""

SHOWN_AT_ONCE = 5


@dataclass(frozen=True)
class Problem:
    """What is wrong (found, allowed), where, and what to type instead."""

    path: Path
    message: str
    remedy: str

    def under(self, parent: Path) -> Problem:
        """The same problem, with its path seen from further out."""
        return replace(self, path=parent + self.path)


def refusal(problems: Sequence[Problem]) -> PydanticCustomError:
    """The exception by which a pydantic validator hands problems on."""
    text = "; ".join(f"{dotted(p.path)}: {p.message}" if p.path else p.message for p in problems)
    return PydanticCustomError(PROBLEM, "{text}", {"text": text, "problems": tuple(problems)})


def input_error(problems: Sequence[Problem], location: Callable[[Path], str]) -> InputError:
    """The first few problems as one message; each keeps its place and its remedy.

    Args:
        problems: at least one.
        location: says where a path stands, such as ``plan.yaml:7, placement[0].ranks``.
    """
    shown = problems[:SHOWN_AT_ONCE]
    blocks = [str(InputError(p.message, location(p.path), p.remedy)) for p in shown[1:]]
    if len(problems) > len(shown):
        blocks.append(f"and {len(problems) - len(shown)} more")
    first = shown[0]
    # Text after the first remedy is its continuation, so the blocks read one below another.
    return InputError(first.message, location(first.path), "\n".join([first.remedy, *blocks]))


def dotted(path: Path) -> str:
    """``placement[1].ranks`` for ``("placement", 1, "ranks")``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w.\-]+", part) else repr(printable(part))
            text += f".{name}" if text else name
    return text


def printable(text: str, longest: int = 60) -> str:
    """At most so many characters of a text, with nothing in it that a terminal could trip over."""
    clean = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return clean if len(clean) <= longest else clean[: longest - 3] + "..."


def found(value: object) -> str:
    """A value as the user will recognise it, with its type where that is the point."""
    if value is None:
        return "found nothing"
    if isinstance(value, bool):
        return f"found {str(value).lower()} (a boolean)"
    if isinstance(value, str):
        return f"found '{printable(value)}'"
    if isinstance(value, float):
        return f"found {value}"
    if isinstance(value, int):  # Python itself refuses to print very many digits
        return f"found {value}" if abs(value) < 10**30 else "found a huge number"
    if isinstance(value, list | tuple):
        return f"found a list of {len(value)}" if value else "found an empty list"
    if isinstance(value, dict):
        keys = ", ".join(printable(str(key)) for key in list(value)[:4])
        return f"found a mapping ({keys})" if value else "found an empty mapping"
    return f"found a {type(value).__name__}"


def listed(names: Iterable[str]) -> str:
    """``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def nearest(word: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name that was probably meant, or an empty text.

    Args:
        cutoff: least similarity, 0 to 1 (difflib's ratio).
    """
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower()[:200], by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else ""
