"""What one rank holds of the network: weights, gradients, the optimizer's state; and its update.

    weights     as the computation wants them
    master      in float32, where the weights have fewer bits: what is updated, and rounded from
    state       what the optimizer keeps, by its names, in the format of what is updated
    gradients   in the format in which they are summed

With a sharded optimizer (ZeRO stage 1, Rajbhandari et al. 2020) a group's weights and gradients lie
in flat buffers of equal shards, and each rank keeps master and state of its own shard only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.models.box import Box, shape_of
from orchestrator.models.model_file import is_of_user, user_error
from orchestrator.models.parameter import Constant, ParameterSpec, Tile
from orchestrator.models.pieces import cut_out, put_in
from orchestrator.models.randomness import seed_of
from orchestrator.models.sized import SizedLayer
from orchestrator.models.user_kinds import check_tensor
from orchestrator.optimizers import Optimizer, StateTensor, Update
from orchestrator.program.precision import Precision
from orchestrator.program.segments import SegmentPart

TORCH_DTYPE = {
    "float64": torch.float64, "float32": torch.float32, "tfloat32": torch.float32,
    "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """One tensor of a rank's parameters: a box of a layer's parameter.

    Args:
        layer: the layer.
        tile: which box of which parameter.
    """

    layer: SizedLayer
    tile: Tile

    @property
    def name(self) -> str:
        """Of the whole parameter: ``layer.parameter``."""
        return f"{self.layer.name}.{self.tile.parameter}"

    @property
    def spec(self) -> ParameterSpec:
        """The whole parameter."""
        return self.layer.spec(self.tile.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this tensor."""
        return shape_of(self.tile.box)

    @property
    def trained(self) -> bool:
        """Whether the recipe's optimizer updates it; else it has an update of its own."""
        return self.spec.update is None

    @property
    def decays(self) -> bool:
        """Whether weight decay applies."""
        return self.spec.decays

    def of(self, whole: Tensor) -> Tensor:
        """This slot's part of the whole parameter; a view where it can be."""
        return cut_out(whole, self.tile.box)

    def put(self, whole: Tensor, value: Tensor) -> None:
        """Write ``value`` where this slot lies in the whole parameter."""
        put_in(whole, self.tile.box, value, add=False)


def slots_of(part: SegmentPart) -> list[Slot]:
    """The tensors behind a segment part, layer by layer."""
    return [Slot(layer.sized, tile) for layer in part.layers for tile in layer.tiles]


def initial_value(slot: Slot, seed: int, wholes: dict[str, Tensor]) -> Tensor:
    """Float32 start value; ``wholes`` keeps the whole parameter between the slots of one layer."""
    if type(slot.spec.initial) is Constant:
        return slot.spec.initial.draw(slot.shape, torch.Generator())
    if slot.name not in wholes:
        wholes.clear()
        wholes[slot.name] = initial_parameter(slot.layer, slot.spec, seed)
    return slot.of(wholes[slot.name])


def initial_parameter(layer: SizedLayer, spec: ParameterSpec, seed: int) -> Tensor:
    """The whole parameter, float32 on the CPU, drawn from (seed, parameter, layer).

    Raises:
        InputError: a user's own initial values fail, or are not what they should be.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, spec.name, layer.name))
    if not is_of_user(type(spec.initial)):
        return spec.initial.draw(spec.shape, generator)
    what = f"layer {layer.name}: its initial {spec.name}"
    try:
        found = spec.initial.draw(spec.shape, generator)
    except Exception as error:
        raise user_error(error, f"{what} fails") from error
    check_tensor(found, spec.shape, torch.float32, f"{what} gives")
    return found


class Target(NamedTuple):
    """What a rank updates: a tensor of its own, or the part of one that lies in its shard. Those
    that are not trained are updated with what takes the place of their gradient.

    Args:
        start, stop: within the flattened slot.
        value: the weights themselves, or their master.
    """

    slot: Slot
    start: int
    stop: int
    value: Tensor


class SegmentParameters:
    """Weights, gradients and optimizer state of one segment on one rank.

    ``weights`` and ``every`` slot are in the order of the layers' tiles, those that are borrowed
    from other layers among them; slots, gradients and targets are of its own only. The optimizer's
    ``state`` is of the targets that are trained, in their order.

    Args:
        precision: formats of the tensors.
        group: ranks that hold the same; their gradients are summed.
        group_rank: this rank's place in the group.
        sharded: keep master and state of one shard only.
        value: start value of a slot, float32.
    """

    def __init__(
        self,
        part: SegmentPart,
        *,
        optimizer: Optimizer,
        precision: Precision,
        device: torch.device,
        group: int,
        group_rank: int,
        sharded: bool,
        value: Callable[[Slot], Tensor],
    ) -> None:
        self.optimizer, self.device = optimizer, device
        self.reduce_dtype = TORCH_DTYPE[precision.reduce]
        self.update_dtype = TORCH_DTYPE[precision.updated]
        self.every = every = slots_of(part)
        self.slots = [slot for slot in every if not slot.spec.tied_to]
        starts = [value(slot) for slot in self.slots]
        self.sizes = [start.numel() for start in starts]
        self.total = sum(self.sizes)
        self.sharded = sharded and group > 1
        padded = -(-self.total // group) * group if self.sharded else self.total
        self.shard = slice(group_rank * padded // group, (group_rank + 1) * padded // group)
        dtype = TORCH_DTYPE[precision.parameters]
        self.flat = torch.zeros(padded, dtype=dtype, device=device) if self.sharded else None
        self.own: list[Tensor] = []
        for start, view in zip(starts, self._views(self.flat, starts), strict=True):
            weight = torch.empty(start.shape, dtype=dtype, device=device) if view is None else view
            self.own.append(weight.copy_(start).requires_grad_())
        # by position among the weights
        self.borrowed = {
            n: torch.zeros(slot.shape, dtype=dtype, device=device).requires_grad_()
            for n, slot in enumerate(every) if slot.spec.tied_to
        }  # fmt: skip
        own = iter(self.own)
        self.weights = [
            self.borrowed[n] if n in self.borrowed else next(own) for n in range(len(every))
        ]
        self.borrowed_gradients: dict[int, Tensor] = {}
        self.has_master = bool(precision.master)
        self.targets = self._shard_targets(starts) if self.sharded else self._targets(starts)
        self.trained = [target for target in self.targets if target.slot.trained]
        self.state = {tensor.name: self._new_state(tensor) for tensor in optimizer.state}
        self.updates = 0
        self._update: Update | None = None
        self.reduced = group > 1
        self.flat_gradient = (
            torch.zeros(padded, dtype=self.reduce_dtype, device=device) if self.reduced else None
        )
        self.gradients: list[Tensor | None] = [None] * len(self.slots)
        self._gradient_views = self._views(self.flat_gradient, starts)

    def _targets(self, starts: list[Tensor]) -> list[Target]:
        """Every tensor of its own."""
        found = []
        for slot, weight, start in zip(self.slots, self.own, starts, strict=True):
            value = weight
            if self.has_master:
                value = torch.empty(start.shape, dtype=self.update_dtype, device=self.device)
                value.copy_(start)
            found.append(Target(slot, 0, start.numel(), value))
        return found

    def _shard_targets(self, starts: list[Tensor]) -> list[Target]:
        """What lies in this rank's shard."""
        assert self.flat is not None
        source = self.flat.detach()[self.shard]
        if self.has_master:
            source = torch.zeros(source.numel(), dtype=self.update_dtype, device=self.device)
        found = []
        for slot, start, first in zip(
            self.slots, starts, accumulate(self.sizes, initial=0), strict=False
        ):
            low = max(first, self.shard.start)
            high = min(first + start.numel(), self.shard.stop)
            if low < high:
                value = source[low - self.shard.start : high - self.shard.start]
                if self.has_master:
                    value.copy_(start.flatten()[low - first : high - first])
                found.append(Target(slot, low - first, high - first, value))
        return found

    def _new_state(self, tensor: StateTensor) -> list[Tensor]:
        """Zeros for every trained target; of a shard as one piece of memory."""
        dtype = TORCH_DTYPE[tensor.dtype] if tensor.dtype else self.update_dtype
        if tensor.scalar:
            return [torch.zeros((), dtype=dtype, device=self.device) for _ in self.trained]
        if not self.sharded:
            return [torch.zeros_like(t.value, dtype=dtype) for t in self.trained]
        held = torch.zeros(self.shard.stop - self.shard.start, dtype=dtype, device=self.device)
        sizes = [target.value.numel() for target in self.trained]
        return list(held[: sum(sizes)].split(sizes)) if sizes else []

    def _views(self, flat: Tensor | None, like: list[Tensor]) -> list[Tensor | None]:
        if flat is None:
            return [None] * len(like)
        pieces = flat[: self.total].split(self.sizes)
        return [piece.view(x.shape) for piece, x in zip(pieces, like, strict=True)]

    def accumulate(self, gradients: Iterable[Tensor]) -> None:
        """Add one chunk's gradients, one for each of ``weights``."""
        i = 0
        for n, gradient in enumerate(gradients):
            if n in self.borrowed:
                kept = self.borrowed_gradients.get(n)
                wide = gradient.to(self.reduce_dtype)
                self.borrowed_gradients[n] = wide if kept is None else kept.add_(wide)
                continue
            kept, view = self.gradients[i], self._gradient_views[i]
            if kept is not None:
                kept.add_(gradient)
            elif view is not None:
                self.gradients[i] = view.copy_(gradient)
            else:
                self.gradients[i] = gradient.to(self.reduce_dtype)
            i += 1

    def named(self, name: str) -> Tensor:
        """Its own tensor of a parameter, ``layer.parameter``."""
        return next(w for w, slot in zip(self.own, self.slots, strict=True) if slot.name == name)

    def add_gradient(self, name: str, box: Box, piece: Tensor) -> None:
        """Add to the gradient of a box of one of its own parameters."""
        number = next(n for n, slot in enumerate(self.slots) if slot.name == name)
        gradient = self.gradients[number]
        assert gradient is not None, f"{name} has its own layer's gradient first"
        put_in(gradient, box, piece, add=True)

    def step(self, lr: float, scale: float, loss_scale: float = 1.0) -> None:
        """Update the weights (or this rank's shard of them) and forget the gradients.

        Args:
            lr: learning rate.
            scale: factor on what was found: global batch over the examples of this update.
            loss_scale: what gradients are larger by; what is told of a batch is not.
        """
        if self.targets:  # else of more ranks than values
            if self._update is None and self.trained:
                self._update = self.optimizer.update(
                    [target.value for target in self.trained],
                    self.state,
                    [target.slot.decays for target in self.trained],
                    lr,
                )
            gradients = []
            for target, found in zip(self.targets, self.target_gradients(), strict=True):
                factor = scale / loss_scale if target.slot.trained else scale
                gradient = found if factor == 1 else found.mul_(factor)
                gradient = gradient.to(self.update_dtype)
                if target.slot.spec.update is not None:
                    target.slot.spec.update.apply(target.value, gradient)
                else:
                    gradients.append(gradient)
            if self._update is not None:
                self._update.step(gradients, lr, first=not self.updates)
            self.take_masters()
        self.updates += 1
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """The next backward begins anew."""
        self.gradients = [None] * len(self.slots)

    def take_masters(self) -> None:
        """Round the weights from their masters, where there are any; of a shard, those in it."""
        if not self.has_master:
            return
        with torch.no_grad():
            if self.flat is None:
                torch._foreach_copy_(self.own, [target.value for target in self.targets])
                return
            low = self.shard.start
            for target in self.targets:
                self.flat.detach()[low : low + target.value.numel()].copy_(target.value)
                low += target.value.numel()

    def target_gradients(self) -> list[Tensor]:
        """Of what this rank updates: its tensors, or the pieces of them in its shard."""
        if self.flat is None:
            assert all(g is not None for g in self.gradients)
            return [g for g in self.gradients if g is not None]
        assert self.flat_gradient is not None
        sizes = [target.value.numel() for target in self.targets]
        return list(self.flat_gradient[self.shard][: sum(sizes)].split(sizes)) if sizes else []

    def pieces(self, flat: Tensor) -> Iterator[tuple[Slot, int, int, Tensor]]:
        """(slot, start and stop within it, values) of what this rank updates, laid end to end."""
        done = 0
        for slot, start, stop, _ in self.targets:
            yield slot, start, stop, flat[done : done + stop - start]
            done += stop - start

    def tensors(self) -> Iterator[Tensor]:
        """All that stays from step to step; some of it views of one memory."""
        yield from self.weights
        yield from (target.value for target in self.targets)
        for tensors in self.state.values():
            yield from tensors
        yield from (t for t in (self.flat, self.flat_gradient) if t is not None)
