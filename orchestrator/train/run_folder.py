"""The folder that a run leaves behind. Every file in it is whole at any moment.

    plan.yaml  metrics.json  summary.json  steps.jsonl  timeline.jsonl  trace.json  checkpoints/
    restarts.jsonl

Lines are appended in one write; other files are written aside and renamed. ``restarts.jsonl`` is
there once a run has gone on in its folder, and has a line for each time, in turn: from which step,
and when.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.files import replacing
from orchestrator.models.model_file import model_sources
from orchestrator.plan import Plan

SCHEMA_VERSION = 1
_RESTARTS = "restarts.jsonl"


class RunFolder:
    """A run's folder, made or (to resume) opened.

    Args:
        keep_before: when resuming in place, keep the steps before this one.

    Attributes:
        restarts: how often the run has gone on in this folder, this time included, however it
            ended before.

    Raises:
        InputError: no write access, or the folder holds another run.
    """

    def __init__(self, path: Path, plan: Plan, *, keep_before: int | None = None) -> None:
        self.path = path
        self.restarts = 0
        self._steps = path / "steps.jsonl"
        self._before: dict[str, str | None] | None = None  # what a run in place found
        self._made: list[Path] | None = None  # folders, the innermost first
        try:
            self._open(plan, keep_before)
        except OSError as error:
            with suppress(OSError):
                self.discard()
            raise InputError(
                f"cannot write to the run folder {path}: {error.strerror or error}",
                "--out",
                "a folder where you may write, such as --out runs/my-run",
            ) from error

    def _open(self, plan: Plan, keep_before: int | None) -> None:
        path = self.path
        if keep_before is None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            resumable = any(path.glob("checkpoints/step-*.pt"))
            raise InputError(
                f"{path} exists and is not an empty folder; a run does not write over another",
                "--out",
                "another folder" + f", or --resume {path} to go on with it" * resumable,
            )
        if keep_before is not None:
            names = ("plan.yaml", "steps.jsonl", "metrics.json", _RESTARTS)
            for file in (path / name for name in names):
                if file.exists() and not file.is_file():  # a pipe would never end
                    raise InputError("not a file", str(file), "name the folder of a run")
            self._before = {
                name: (path / name).read_text(encoding="utf-8") if (path / name).exists() else None
                for name in names
            }
        self._made = [p for p in (path, *path.parents) if not p.exists()]
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.write("plan.yaml", _own_copy(plan, path))
        self.write("steps.jsonl", self._kept(keep_before) if keep_before is not None else "")
        if keep_before is not None:
            self._add_restart(keep_before)

    def discard(self) -> None:
        """Leave all as it was before a run that never began."""
        if self._before is not None:
            for name, text in self._before.items():
                if text is None:
                    (self.path / name).unlink(missing_ok=True)
                else:
                    self.write(name, text)
        elif self._made is not None:  # the folder was ours to fill
            with suppress(OSError):  # it could not be made
                for child in self.path.iterdir():
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
            for folder in self._made:
                with suppress(OSError):  # the same, or another run lies beside this one
                    folder.rmdir()

    def write(self, name: str, text: str) -> None:
        """Put a whole file in place."""
        with self.replacing(name) as file:
            file.write_text(text, encoding="utf-8")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A file to write to, which becomes ``name`` once it is whole."""
        with replacing(self.path / name) as file:
            yield file

    def write_json(self, name: str, data: Any) -> None:
        """Put a whole JSON file in place."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def add_step(self, row: dict[str, Any]) -> None:
        """Append a line to ``steps.jsonl``."""
        with self._steps.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _add_restart(self, step: int) -> None:
        assert self._before is not None
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = (self._before[_RESTARTS] or "") + json.dumps({"step": step, "time": now}) + "\n"
        self.write(_RESTARTS, text)
        self.restarts = text.count("\n")

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps goes."""
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def _kept(self, before: int) -> str:
        if not self._steps.exists():
            return ""
        lines = self._steps.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a crash may cut the last one
        return "".join(line for line in whole if json.loads(line)["step"] < before)


def _own_copy(plan: Plan, path: Path) -> str:
    """The plan as YAML; a model file of the user's is copied along, with what it imports from its
    folder."""
    if plan.model_file is None or plan.model.file is None:
        return plan.to_yaml()
    for source in model_sources(plan.model_file):
        target = path / os.path.relpath(source, plan.model_file.parent)
        if source.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    model = plan.model.model_copy(update={"file": plan.model_file.name})
    return plan.model_copy(update={"model": model}).to_yaml()
