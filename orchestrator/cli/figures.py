"""Predicted numbers as a terminal shows them: no more digits than they are worth.

A prediction is seldom within some percent, so three digits are all that it has; and where it rests
on a figure that the cluster file marks ``assumed: true``, ``~`` stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

MARK = "~"
_MOST_KEYS = 3


def mark(keys: Sequence[str]) -> str:
    """What stands before a number that rests on these assumed figures."""
    return MARK if keys else ""


def three_digits(value: float) -> str:
    """``0.501``, ``12.3``, ``5,230``: three significant digits, zeros behind them."""
    if value == 0 or not 1e-3 <= abs(value) < 1e15:
        return f"{value:.3g}"
    rounded = round(value, _decimals(value))
    return f"{rounded:,.{max(0, _decimals(rounded))}f}"


def _decimals(value: float) -> int:
    return 2 - floor(log10(abs(value)))


def seconds(value: float) -> str:
    """In seconds, or in milliseconds where it is less than a tenth."""
    value = abs(value) if abs(value) >= 1e-9 else 0.0  # what is left of a sum can be -1e-18
    return f"{three_digits(value)} s" if value >= 0.1 else f"{three_digits(value * 1e3)} ms"


def duration(value: float) -> str:
    """Seconds in the unit that a person would say."""
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if value < most:
            return f"{three_digits(value / size)} {unit}"
    return f"{three_digits(value / 86400)} days"


def share(value: float) -> str:
    """Of a whole, in percent: ``96.7%``, ``100%``."""
    shown = f"{abs(value):.1%}"
    return "100%" if shown == "100.0%" else shown


def footnote(cluster: str, keys: Sequence[str]) -> str:
    """What the mark means, and on which figures the marked numbers rest; "" without any."""
    if not keys:
        return ""
    shown = ", ".join(keys[:_MOST_KEYS])
    more = len(keys) - _MOST_KEYS
    rest = f" and {more} more (assumed in --json)" if more > 0 else ""
    return f"{MARK} rests on figures that {cluster} assumes: {shown}{rest}"
