"""Which layers an entry names: a text such as ``conv1..pool2``, or a list of these.

======================  =====================================================================
``conv1``               one layer
``conv1..pool2``        from the first to the second, in the model's order
``blocks.3``            the layers whose names begin with ``blocks.3.``
``blocks.0..11``        the layers of these blocks
``all``                 every layer
``[a1..a3, c1..c3]``    several of these, each layer once
======================  =====================================================================
"""

from __future__ import annotations

import re

from orchestrator.plan.problem import Problem, found, refusal

_NAME = r"[A-Za-z0-9_]+(?:[.\-/][A-Za-z0-9_]+)*"
TEXT = rf"^{_NAME}(?:\.\.{_NAME})?$"
"""The pattern of a text, for the JSON Schema too."""

LONGEST = 300
ALLOWED = "one layer's name, first..last, blocks.0..11, or all"
_LIKE = "write it like layers: conv1..pool2"
_BLOCKS = re.compile(r"(?P<stem>.*\.)(?P<first>\d+)\.\.(?P<last>\d+)")


def read_layers(value: object) -> str | tuple[str, ...]:
    """What a user wrote under ``layers``, checked as far as the model is not needed.

    Raises:
        PydanticCustomError: carrying every problem found.
    """
    if not isinstance(value, list | tuple):
        problems = _of_text(value, ", or a list of texts")
    elif value:
        each = enumerate(value)
        problems = [p.under((position,)) for position, text in each for p in _of_text(text)]
    else:
        problems = [Problem((), f"found an empty list; allowed: {ALLOWED}", _LIKE)]
    if problems:
        raise refusal(problems)
    return value if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]  # checked


def ends(text: str) -> tuple[str, str]:
    """The names of the first and the last layer or block of a text, equal where it names one."""
    if blocks := _BLOCKS.fullmatch(text):
        return blocks["stem"] + blocks["first"], blocks["stem"] + blocks["last"]
    first, _, last = text.partition("..")
    return first, last or first


def _of_text(text: object, or_else: str = "") -> list[Problem]:
    if isinstance(text, str):
        if len(text) > LONGEST:
            size = f"found text of {len(text)} characters; allowed: at most {LONGEST} characters"
            return [Problem((), size, _LIKE)]
        if re.match(TEXT, text) is None:
            return [Problem((), f"{found(text)}; allowed: {ALLOWED}", _LIKE)]
        return []
    message = f"{found(text)}; allowed: text{or_else}"
    remedy = _LIKE
    if isinstance(text, list | tuple):
        remedy = "write one list of names, with no list in it"
    elif isinstance(text, int | float):  # a boolean, too
        remedy = f"put it in quotes: '{str(text).lower()}'"
    return [Problem((), message, remedy)]
