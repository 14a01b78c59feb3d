"""Checkpoints by the model's own layer names, so that any plan can resume what another began.

``checkpoints/step-000040.pt`` holds whole tensors, float32 or the run's format:

    {"schema": 2, "model": "alexnet2012", "step": 40, "seed": 0, "lr": 0.01, "optimizer": "adamw",
     "parameters": {"conv1.weight": ..., "conv1.bias": ..., "bn1.running_mean": ...},
     "state": {"conv1.weight": {"exp_avg": ..., "exp_avg_sq": ..., "step": ...}, ...}}

What is not trained, such as a running average, has no state. A parameter that ranks hold in fewer
bits is there as its float32 master. What the optimizer keeps has the names of
:mod:`orchestrator.optimizers`. A momentum with the rate inside is in units of -lr, as
``torch.optim.SGD`` keeps it: a run that goes on with the same rate goes on with the same bits, and
one with another rate rescales it.

Schema 1, which is read as well, is of the 2012 paper's optimizer: "weights" for "parameters", and
its momentum under "velocities".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.parameters import TORCH_DTYPE, Slot
from orchestrator.files import open_regular, replacing
from orchestrator.models.model import Model
from orchestrator.optimizers import Optimizer, Sgd2012, StateTensor
from orchestrator.program.precision import Precision

SCHEMA = 2
PARAMETER = ""  # the name of a piece that is of the parameter itself


@dataclass(frozen=True)
class Piece:
    """A part of one tensor, on its way from a rank to the whole.

    Args:
        name: of the optimizer's tensor; :data:`PARAMETER` for the parameter itself.
        start: where ``values`` begins in the flattened slot.
    """

    name: str
    slot: Slot
    start: int
    values: Tensor


@dataclass(frozen=True)
class Scale:
    """A dynamic loss scale, and the updates since it was changed."""

    value: float
    held: int


def pieces(interpreter: RankInterpreter) -> Iterator[Piece | Scale]:
    """What this rank gives to a checkpoint: each value of the network comes from one rank."""
    program = interpreter.program
    if interpreter.scale.dynamic:
        yield Scale(interpreter.scale.value, interpreter.scale.held)
    for segment, parameters in interpreter.parameters.items():
        first = next(
            (b.ranks[0] for b in program.buckets[segment] if interpreter.local_rank in b.ranks), -1
        )
        if not (
            parameters.sharded or (interpreter.replica == 0 and interpreter.local_rank == first)
        ):
            continue
        for slot, start, _, value in parameters.targets:
            yield Piece(PARAMETER, slot, start, _sent(value))
        for number, (slot, start, _, _) in enumerate(parameters.trained):
            for name, tensors in parameters.state.items():
                yield Piece(name, slot, start, _sent(tensors[number]))


def _sent(tensor: Tensor) -> Tensor:
    """Flat, on the host, and no view of a larger memory, which would travel whole."""
    flat = tensor.detach().flatten()
    return flat.clone() if flat.untyped_storage().nbytes() > flat.nbytes else flat.cpu()


def restore(interpreter: RankInterpreter, state: State) -> None:
    """Take parameters and optimizer state from a checkpoint."""
    if interpreter.scale.dynamic and state.scale is not None:
        interpreter.scale.value, interpreter.scale.held = state.scale.value, state.scale.held
    lr = interpreter.recipe.lr
    optimizer = interpreter.recipe.updates
    rescale = state.lr / lr if optimizer.rate_inside and lr and state.lr else 1.0
    scalars = {tensor.name for tensor in optimizer.state if tensor.scalar}
    for parameters in interpreter.parameters.values():
        parameters.updates = state.step
        with torch.no_grad():
            for slot, weight in zip(parameters.slots, parameters.own, strict=True):
                weight.copy_(slot.of(state.parameters[slot.name]))
            for slot, start, stop, value in parameters.targets if parameters.has_master else ():
                whole = slot.of(state.parameters[slot.name])
                value.copy_(whole.flatten()[start:stop].view(value.shape))
            for number, (slot, start, stop, _) in enumerate(parameters.trained):
                for name, tensors in parameters.state.items():
                    kept, tensor = state.state[slot.name][name], tensors[number]
                    if name not in scalars:
                        kept = slot.of(kept).flatten()[start:stop].view(tensor.shape)
                    tensor.copy_(kept)
                    if rescale != 1:
                        tensor.mul_(rescale)


@dataclass
class State:
    """A whole network in training.

    Args:
        step: steps done.
        lr: learning rate of the last step; 0 if there was none.
        optimizer: its name.
        state: by trained parameter, what the optimizer keeps.
        scale: the dynamic loss scale, if there is one.
        filled: values that pieces have brought, by parameter and name of the tensor.
    """

    model: str
    step: int
    seed: int
    lr: float = 0.0
    optimizer: str = Sgd2012.name
    parameters: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    scale: Scale | None = None
    filled: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def empty(
        cls, model: Model, step: int, seed: int, precision: Precision, optimizer: Optimizer,
        lr: float = 0.0,
    ) -> State:  # fmt: skip
        """Tensors to be filled by :meth:`put`."""
        state = cls(model.name, step, seed, lr, optimizer.name)
        dtype = TORCH_DTYPE[precision.updated]
        for name, shape, trained in _shapes(model):
            state.parameters[name] = torch.full(shape, torch.nan, dtype=dtype)
            if not trained:
                continue
            state.state[name] = {
                tensor.name: torch.full(
                    _shape(tensor, shape), torch.nan,
                    dtype=TORCH_DTYPE[tensor.dtype] if tensor.dtype else dtype,
                )
                for tensor in optimizer.state
            }  # fmt: skip
        return state

    def put(self, piece: Piece | Scale) -> None:
        """Write one piece where it belongs."""
        if isinstance(piece, Scale):
            self.scale = piece
            return
        name = piece.slot.name
        if piece.name == PARAMETER:
            whole = self.parameters[name]
        else:
            whole = self.state[name][piece.name]
        if not whole.dim() and piece.name != PARAMETER:  # a count, which all parts agree on
            self.filled[name, piece.name] = 1
            whole.copy_(piece.values[0])
            return
        self.filled[name, piece.name] += piece.values.numel()
        current = piece.slot.of(whole).flatten()
        current[piece.start : piece.start + piece.values.numel()] = piece.values
        piece.slot.put(whole, current.view(piece.slot.of(whole).shape))

    def save(self, path: Path) -> None:
        """Write to ``path``, which appears only when it is whole."""
        for name, parameter in self.parameters.items():
            for kind, whole in (
                (PARAMETER, parameter),
                *self.state.get(name, {}).items(),
            ):
                got = self.filled[name, kind]
                what = f"{kind or 'values'} of {name}"
                assert got == whole.numel(), f"{what}: {got} of {whole.numel()} values"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(
                {"schema": SCHEMA, "model": self.model, "step": self.step, "seed": self.seed,
                 "lr": self.lr, "optimizer": self.optimizer, "parameters": self.parameters,
                 "state": self.state,
                 **({"loss_scale": asdict(self.scale)} if self.scale else {})},
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


def load(path: Path, model: Model, optimizer: Optimizer) -> State:
    """Read a checkpoint and check that it is of this model and this optimizer.

    Raises:
        InputError: not a checkpoint, of another schema, of a model with other layers or shapes, or
            of an optimizer that keeps other tensors.
    """
    remedy = "resume from a run folder, or from a file of its checkpoints/"
    try:
        open_regular(path).close()
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", str(path), remedy) from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        schema = data["schema"]
        state = _of_schema_1(data) if schema == 1 else None
        if schema == SCHEMA:
            state = State(
                data["model"], data["step"], data["seed"], data["lr"], data["optimizer"],
                data["parameters"], data["state"],
                Scale(**data["loss_scale"]) if "loss_scale" in data else None,
            )  # fmt: skip
            assert all(isinstance(kept, dict) for kept in state.state.values())
    except Exception as error:  # torch's own words are about how the file was saved
        message = "not a checkpoint of this program, or cut short"
        raise InputError(message, str(path), remedy) from error
    if state is None:
        raise InputError(
            f"checkpoint schema {schema}; this release reads 1 and {SCHEMA}", str(path), remedy
        )
    _check_optimizer(path, state, optimizer)
    for name, shape, trained in _shapes(model):
        _check(path, state, model, name, state.parameters.get(name), shape)
        for tensor in optimizer.state if trained else ():
            what = f"{tensor.name} of {name}"
            found = state.state.get(name, {}).get(tensor.name)
            _check(path, state, model, what, found, _shape(tensor, shape))
    return state


def _of_schema_1(data: dict[str, Any]) -> State:
    """The 2012 paper's optimizer, before others came."""
    kept = {name: {"momentum": velocity} for name, velocity in data["velocities"].items()}
    lr = data.get("lr", 0.0)
    return State(data["model"], data["step"], data["seed"], lr, Sgd2012.name, data["weights"], kept)


def _check_optimizer(path: Path, state: State, optimizer: Optimizer) -> None:
    """Momenta of two optimizers may have one name, and are of different units."""
    kept = sorted({name for tensors in state.state.values() for name in tensors})
    missing = [tensor.name for tensor in optimizer.state if tensor.name not in kept]
    if state.optimizer == optimizer.name and not missing:
        return
    has = f"which keeps {', '.join(kept)}" if kept else "which keeps nothing"
    lacks = f", and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    raise InputError(
        f"the checkpoint is of optimizer {state.optimizer}, {has}; this run's is {optimizer.name}"
        f"{lacks if missing else ', whose momentum has another unit'}",
        str(path),
        f"training.optimizer: {state.optimizer} with the options of that run, or start anew "
        "without --resume",
    )


def _check(
    path: Path, state: State, model: Model, what: str, found: object, expected: tuple[int, ...]
) -> None:
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    if shape != expected:
        raise InputError(
            f"{what} is {'missing' if shape is None else shape} in the checkpoint (model "
            f"{state.model}) and {expected} in {model.name}",
            str(path),
            "resume with the same model and model options",
        )


def _shape(tensor: StateTensor, of_parameter: tuple[int, ...]) -> tuple[int, ...]:
    return () if tensor.scalar else of_parameter


def _shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name and shape of every parameter of a model, and whether it is trained."""
    for layer in model.layers:
        for spec in (spec for spec in layer.specs if not spec.tied_to):
            yield f"{layer.name}.{spec.name}", spec.shape, spec.update is None
