"""All that a terminal shows goes through here, so that no name in it can command the terminal.

A summary, a folder or a layer may hold any character, such as those that clear the screen or
retitle the window. They are shown as escapes: ``\\x1b[2J``. Colours are rich's own and stay.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Controls, invisible formats (which can turn the direction of writing), line and paragraph breaks.
_COMMANDS = frozenset({"Cc", "Cf", "Zl", "Zp"})
_HARMLESS = frozenset("\n\t\u200c\u200d")  # the last two join letters of some scripts, and emoji


def visible(text: str) -> str:
    """The text with every character that commands a terminal written as its escape.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in _COMMANDS and c not in _HARMLESS
        else c
        for c in text
    )


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    click.echo(visible(str(text)), err=err)


def show_usage_error(error: click.ClickException) -> None:
    """What click says of a call that cannot be meant."""
    text = io.StringIO()
    error.show(text)
    click.echo(visible(text.getvalue()), err=True, nl=False)


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console for tables and colours; ``options`` as rich's ``Console`` takes them."""
    return _Console(stderr=stderr, highlight=False, **options)


class _Console(Console):
    """Makes texts visible before they are laid out, and what is left of them after."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
