"""Small runs over all the machinery: a net of four layers on digits, started by the command line.

A run of six steps takes some 50 ms once torch is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.cli.command import Ended, command

# A model of the user's own, wide enough at its start that some steps teach it something.
NET = """
from orchestrator.models import Conv, Dropout, Linear, MaxPool, Model, ReLU


def net():
    return Model(
        "net",
        (1, 12, 12),
        [
            Conv(name="conv1", channels=8, kernel=3, weight_std=0.3),
            ReLU(name="relu1"),
            MaxPool(name="pool1", kernel=2, stride=2),
            Linear(name="fc2", features=32, weight_std=0.1),
            ReLU(name="relu2"),
            Dropout(name="drop2"),
            Linear(name="fc3", features=10, weight_std=0.2),
        ],
    )
"""
PLACEMENTS = {
    "one": ("{layers: conv1..fc3, ranks: [0], split: none}",),
    "columns": (
        "{layers: conv1..drop2, ranks: [0, 1], split: channel}",
        "{layers: fc3, ranks: [0], split: none}",
    ),
    "data": ("{layers: conv1..fc3, ranks: [0, 1], split: batch}",),
    "trick": (
        "{layers: conv1..pool1, ranks: [0, 1], split: batch}",
        "{layers: fc2..drop2, ranks: [0, 1], split: channel, exchange: scatter}",
        "{layers: fc3, ranks: [0], split: none}",
    ),
    "stages": (
        "{layers: conv1..pool1, ranks: [0], split: none}",
        "{layers: fc2..fc3, ranks: [1], split: none}",
    ),
}
KEYS = {
    "sharded": ("data", "optimizer_sharding: zero1"),
    "everything": ("trick", "optimizer_sharding: zero1"),
    "pipeline": ("stages", "n_microbatches: 4\nschedule: 1F1B"),
    "replicas": ("stages", "n_microbatches: 2\nreplicas: 2\noptimizer_sharding: zero1"),
}


def plan_file(folder: Path, name: str, batch: int = 16) -> Path:
    """A plan and its model file in a folder."""
    placement, keys = KEYS.get(name, (name, ""))
    (folder / "net.py").write_text(NET)
    lines = [
        "schema_version: 1",
        f"name: {name}",
        "model: {file: net.py, function: net}",
        f"global_batch_size: {batch}",
        "training: {lr: 0.1, seed: 3}",
        "placement:",
        *(f"  - {entry}" for entry in PLACEMENTS[placement]),
        keys,
    ]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(plan: Path, out: Path, steps: int, *more: str, launcher: str = "local") -> Ended:
    """``orchestrator run``."""
    return command(
        "run", "--plan", str(plan), "--launcher", launcher, "--steps", str(steps),
        "--out", str(out), *more,
    )  # fmt: skip


def trained(folder: Path, name: str, steps: int, *more: str) -> Path:
    """The folder of a run that ended well."""
    out = folder / f"{name}-{steps}"
    ended = run(plan_file(folder, name), out, steps, *more)
    assert (ended.code, ended.err) == (0, "")
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(out: Path) -> list[float]:
    """Of every step, in order; the steps are numbered without a gap."""
    rows = lines(out / "steps.jsonl")
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], rows[-1]["step"] + 1))
    return [row["loss"] for row in rows]


def summary(out: Path) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def checkpoint(out: Path, step: int) -> dict[str, Tensor]:
    """What is kept after so many steps, by ``parameters.fc3.bias``, ``momentum.fc3.bias``..."""
    data = torch.load(out / "checkpoints" / f"step-{step:06d}.pt", weights_only=True)
    assert (data["schema"], data["model"], data["step"], data["seed"]) == (2, "net", step, 3)
    parameters = {f"parameters.{name}": tensor for name, tensor in data["parameters"].items()}
    state = {
        f"{kind}.{name}": tensor
        for name, tensors in data["state"].items()
        for kind, tensor in tensors.items()
    }
    return parameters | state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_consistent(out: Path) -> None:
    """What any run folder holds, however its run ended: whole files that tell the same story."""
    found = summary(out)
    rows = lines(out / "steps.jsonl")
    mine = [row["step"] for row in rows if row["step"] >= found["first_step"]]
    assert mine == list(range(found["first_step"], found["first_step"] + found["steps"]))
    ops = lines(out / "timeline.jsonl")
    assert {row["step"] for row in ops} <= set(mine)
    trace = json.loads((out / "trace.json").read_text())
    assert {e["args"]["step"] for e in trace["traceEvents"] if e["ph"] == "X"} <= set(mine)
    for path in (out / "checkpoints").iterdir():
        data = torch.load(path, weights_only=True)
        assert path.name == f"step-{data['step']:06d}.pt"
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
