"""Remembers where each value of a plan was written, so that any later check can point there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from orchestrator.plan.problem import Path, dotted


@dataclass(frozen=True)
class Origin:
    """A file's lines by path, and the command-line overrides that took their place.

    Attributes:
        label: the file as messages call it; empty for a plan that was built in Python.
        folder: where paths in the plan start.
        lines: the line (from 1) on which a path stands.
        overrides: the option that set a path, as typed.
    """

    label: str = ""
    folder: FilePath = FilePath()
    lines: Mapping[Path, int] = field(default_factory=dict)
    overrides: Mapping[Path, str] = field(default_factory=dict)

    def location(self, path: Path) -> str:
        """``x.yaml:12, placement[1].ranks``; a key left out stands where its holder begins."""
        for length in range(len(path), -1, -1):
            outer = path[:length]
            if outer in self.overrides:
                text = self.overrides[outer]
                return text if outer == path else f"{text}, {dotted(path)}"
            if outer in self.lines:
                text = f"{self.label}:{self.lines[outer]}"
                return f"{text}, {dotted(path)}" if path else text
        return ", ".join(part for part in (self.label, dotted(path)) if part and self.label)
