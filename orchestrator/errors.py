"""The one exception that means "the user can fix this": what, where, and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one message.

    Args:
        message: what is wrong, with what was found and what is allowed.
        location: where it stands, such as ``plan.yaml:7, placement[0].ranks``; empty if nowhere.
        remedy: what to type or change; empty if the message says it.
    """

    def __init__(self, message: str, location: str = "", remedy: str = "") -> None:
        super().__init__(message, location, remedy)
        self.message = message
        self.location = location
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.location}: {self.message}" if self.location else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text
