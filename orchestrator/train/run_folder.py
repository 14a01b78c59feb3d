"""The folder that a run leaves behind. Every file in it is whole at any moment.

    plan.yaml  summary.json  steps.jsonl  timeline.jsonl  trace.json  checkpoints/

Lines are appended in one write; other files are written aside and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.plan import Plan

SCHEMA_VERSION = 1


class RunFolder:
    """A run's folder, made or (to resume) opened.

    Args:
        keep_before: when resuming in place, keep the steps before this one.

    Raises:
        InputError: no write access, or the folder holds another run.
    """

    def __init__(self, path: Path, plan: Plan, *, keep_before: int | None = None) -> None:
        self.path = path
        self._steps = path / "steps.jsonl"
        if keep_before is None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{path} exists and is not an empty folder; a run does not write over another",
                "--out",
                f"another folder, or --resume {path} to go on with it",
            )
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self.write("plan.yaml", _own_copy(plan, path))
            kept = self._kept(keep_before) if keep_before is not None else ""
            self.write("steps.jsonl", kept)
        except OSError as error:
            raise InputError(
                f"cannot write to the run folder {path}: {error.strerror or error}",
                "--out",
                "a folder where you may write, such as --out runs/my-run",
            ) from error

    def write(self, name: str, text: str) -> None:
        """Put a whole file in place."""
        target = self.path / name
        temporary = target.with_name(f".{name}.part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)

    def write_json(self, name: str, data: Any) -> None:
        """Put a whole JSON file in place."""
        self.write(name, json.dumps(data, indent=1) + "\n")

    def add_step(self, row: dict[str, Any]) -> None:
        """Append a line to ``steps.jsonl``."""
        with self._steps.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps goes."""
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def _kept(self, before: int) -> str:
        if not self._steps.exists():
            return ""
        lines = self._steps.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(line for line in lines if json.loads(line)["step"] < before)


def _own_copy(plan: Plan, path: Path) -> str:
    """The plan as YAML; a model file of the user's is copied along."""
    if plan.model_file is not None and plan.model.file is not None:
        target = path / Path(plan.model.file).name
        if plan.model_file.resolve() != target.resolve():
            shutil.copyfile(plan.model_file, target)
        model = plan.model.model_copy(update={"file": target.name})
        return plan.model_copy(update={"model": model}).to_yaml()
    return plan.to_yaml()
