"""Checkpoints by the model's own layer names, so that any plan can resume what another began.

``checkpoints/step-000040.pt`` holds whole tensors, float32 or the run's dtype:

    {"schema": 1, "model": "alexnet2012", "step": 40, "seed": 0, "lr": 0.01,
     "weights": {"conv1.weight": ..., "conv1.bias": ..., "bn1.running_mean": ...},
     "velocities": {the same names, less those that are not trained}}

Velocities are in units of -lr, as ``torch.optim.SGD`` keeps its momentum: a run that goes on with
the same rate goes on with the same bits, and one with another rate rescales them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.parameters import SegmentParameters, Slot
from orchestrator.files import open_regular, replacing
from orchestrator.models.model import Model

SCHEMA = 1


@dataclass(frozen=True)
class Piece:
    """A part of one tensor, on its way from a rank to the whole.

    Args:
        kind: ``weights`` or ``velocities``.
        start: where ``values`` begins in the flattened slot.
    """

    kind: str
    slot: Slot
    start: int
    values: Tensor


def pieces(interpreter: RankInterpreter) -> Iterator[Piece]:
    """What this rank gives to a checkpoint: each value of the network comes from one rank."""
    program = interpreter.program
    for segment, parameters in interpreter.parameters.items():
        first = next(
            (b.ranks[0] for b in program.buckets[segment] if interpreter.local_rank in b.ranks), -1
        )
        if interpreter.replica == 0 and interpreter.local_rank == first:
            for slot, weight in zip(parameters.slots, parameters.own, strict=True):
                yield Piece("weights", slot, 0, weight.detach().flatten().cpu())
            if not parameters.sharded:
                for slot, velocity in zip(parameters.trained, parameters.velocities, strict=True):
                    yield Piece("velocities", slot, 0, velocity.flatten().cpu())
        if parameters.sharded:
            for slot, start, part in _shards(parameters):
                yield Piece("velocities", slot, start, part.cpu().clone())


def restore(interpreter: RankInterpreter, state: State) -> None:
    """Take weights and velocities from a checkpoint."""
    for parameters in interpreter.parameters.values():
        lr = interpreter.recipe.lr
        rescale = state.lr / lr if lr and state.lr else 1.0
        with torch.no_grad():
            for slot, weight in zip(parameters.slots, parameters.own, strict=True):
                weight.copy_(slot.of(state.weights[slot.name]))
            if parameters.sharded:
                for slot, start, part in _shards(parameters):
                    whole = slot.of(state.velocities[slot.name]).flatten()
                    part.copy_(whole[start : start + part.numel()])
            else:
                for slot, velocity in zip(parameters.trained, parameters.velocities, strict=True):
                    velocity.copy_(slot.of(state.velocities[slot.name]))
            if rescale != 1:
                for velocity in parameters.velocities:
                    velocity.mul_(rescale)


def _shards(parameters: SegmentParameters) -> Iterator[tuple[Slot, int, Tensor]]:
    """(slot, where in the flattened slot, this rank's velocity there)."""
    begin, shard = 0, parameters.shard
    for slot, size in zip(parameters.slots, parameters.sizes, strict=True):
        low, high = max(begin, shard.start), min(begin + size, shard.stop)
        if low < high and slot.trained:
            mine = parameters.velocities[0][low - shard.start : high - shard.start]
            yield slot, low - begin, mine
        begin += size


@dataclass
class State:
    """A whole network in training.

    Args:
        step: steps done.
        lr: learning rate of the last step; 0 if there was none.
    """

    model: str
    step: int
    seed: int
    lr: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    velocities: dict[str, Tensor] = field(default_factory=dict)
    filled: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def empty(
        cls, model: Model, step: int, seed: int, dtype: torch.dtype, lr: float = 0.0
    ) -> State:
        """Tensors to be filled by :meth:`put`."""
        state = cls(model.name, step, seed, lr)
        for kind, tensors in state.kinds.items():
            for name, shape in _shapes(model, kind):
                tensors[name] = torch.full(shape, torch.nan, dtype=dtype)
        return state

    @property
    def kinds(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by kind and name."""
        return {"weights": self.weights, "velocities": self.velocities}

    def put(self, piece: Piece) -> None:
        """Write one piece where it belongs."""
        name = piece.slot.name
        whole = self.kinds[piece.kind][name]
        self.filled[piece.kind, name] += piece.values.numel()
        current = piece.slot.of(whole).flatten()
        current[piece.start : piece.start + piece.values.numel()] = piece.values
        piece.slot.put(whole, current.view(piece.slot.of(whole).shape))

    def save(self, path: Path) -> None:
        """Write to ``path``, which appears only when it is whole."""
        for kind, tensors in self.kinds.items():
            for name, whole in tensors.items():
                got = self.filled[kind, name]
                assert got == whole.numel(), f"{kind} of {name}: {got} of {whole.numel()} values"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(
                {"schema": SCHEMA, "model": self.model, "step": self.step, "seed": self.seed,
                 "lr": self.lr, "weights": self.weights, "velocities": self.velocities},
                file,
            )  # fmt: skip


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    if folder.is_file():
        return folder
    found = list((folder / "checkpoints").glob("step-*.pt"))
    if not found:
        raise InputError(
            f"{folder} has no checkpoint to resume from",
            "--resume",
            "name a run folder that has checkpoints/step-*.pt",
        )
    return max(found, key=lambda path: (len(path.name), path.name))  # from step 1,000,000 on


def load(path: Path, model: Model) -> State:
    """Read a checkpoint and check that it is of this model.

    Raises:
        InputError: not a checkpoint, of another schema, or of a model with other layers or shapes.
    """
    remedy = "resume from a run folder, or from a file of its checkpoints/"
    try:
        open_regular(path).close()
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", str(path), remedy) from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        schema = data["schema"]
        state = State(
            data["model"],
            data["step"],
            data["seed"],
            data.get("lr", 0.0),
            data["weights"],
            data["velocities"],
        )
    except Exception as error:  # torch's own words are about how the file was saved
        message = "not a checkpoint of this program, or cut short"
        raise InputError(message, str(path), remedy) from error
    if schema != SCHEMA:
        raise InputError(
            f"checkpoint schema {schema}; this release reads {SCHEMA}", str(path), remedy
        )
    for kind, tensors in state.kinds.items():
        for name, expected in _shapes(model, kind):
            found = tensors.get(name)
            shape = None if found is None else tuple(found.shape)
            if shape != expected:
                raise InputError(
                    f"{name} is {shape or 'missing'} in the checkpoint's {kind} (model "
                    f"{state.model}) and {expected} in {model.name}",
                    str(path),
                    "resume with the same model and model options",
                )
    return state


def _shapes(model: Model, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of a model, for velocities of those that are trained."""
    for layer in model.layers:
        for spec in (spec for spec in layer.specs if not spec.tied_to):
            if kind == "velocities" and spec.update is not None:
                continue
            yield f"{layer.name}.{spec.name}", spec.shape
