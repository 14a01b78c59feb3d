"""What one rank holds of the network: weights, gradients, momentum; and how it updates them.

The update is the 2012 paper's (section 5), the rate inside the velocity:

    v <- momentum v - weight_decay lr w - lr g        biases: no decay
    w <- w + v

While the rate stays as it is, that is what ``torch.optim.SGD`` does with v = -lr b, in one pass
over memory since it is fused there; so b is what is kept, and a new rate has to rescale it.

With a sharded optimizer (ZeRO stage 1, Rajbhandari et al. 2020) a group's weights and gradients lie
in flat buffers of equal shards, and each rank keeps the velocity of its own shard only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from orchestrator.models.box import Box, shape_of
from orchestrator.models.model import Recipe
from orchestrator.models.model_file import is_of_user, user_error
from orchestrator.models.parameter import Constant, ParameterSpec, Tile
from orchestrator.models.pieces import cut_out, put_in
from orchestrator.models.randomness import seed_of
from orchestrator.models.sized import SizedLayer
from orchestrator.models.user_kinds import check_tensor
from orchestrator.program.segments import SegmentPart

TORCH_DTYPE = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


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


class SegmentParameters:
    """Weights, gradients and velocities of one segment on one rank.

    ``weights`` and ``every`` slot are in the order of the layers' tiles, those that are borrowed
    from other layers among them; slots and gradients are of its own only. What has an update of
    its own lies among them, too: its gradient is what it is updated with. Velocities are of what is
    ``trained``; in a flat buffer the others have a place and do not use it.

    Args:
        group: ranks that hold the same; their gradients are summed.
        group_rank: this rank's place in the group.
        sharded: keep the velocity of one shard only.
        value: start value of a slot.
    """

    def __init__(
        self,
        part: SegmentPart,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: int,
        group_rank: int,
        sharded: bool,
        value: Callable[[Slot], Tensor],
    ) -> None:
        self.every = every = slots_of(part)
        self.slots = [slot for slot in every if not slot.spec.tied_to]
        self.trained = [slot for slot in self.slots if slot.trained]
        starts = [value(slot) for slot in self.slots]
        self.sizes = [start.numel() for start in starts]
        self.total = sum(self.sizes)
        self.sharded = sharded and group > 1
        padded = -(-self.total // group) * group if self.sharded else self.total
        self.shard = slice(group_rank * padded // group, (group_rank + 1) * padded // group)
        options = {"dtype": dtype, "device": device}
        self.flat = torch.zeros(padded, **options) if self.sharded else None  # type: ignore[call-overload]
        self.own: list[Tensor] = []
        for start, view in zip(starts, self._views(self.flat, starts), strict=True):
            weight = torch.empty(start.shape, **options) if view is None else view  # type: ignore[call-overload]
            self.own.append(weight.copy_(start).requires_grad_())
        # by position among the weights
        self.borrowed = {
            n: torch.zeros(slot.shape, **options).requires_grad_()  # type: ignore[call-overload]
            for n, slot in enumerate(every) if slot.spec.tied_to
        }  # fmt: skip
        own = iter(self.own)
        self.weights = [
            self.borrowed[n] if n in self.borrowed else next(own) for n in range(len(every))
        ]
        self.borrowed_gradients: dict[int, Tensor] = {}
        held = self.shard.stop - self.shard.start if self.sharded else 0
        self.velocities = (
            [torch.zeros(held, **options)]  # type: ignore[call-overload]
            if self.sharded
            else [
                torch.zeros_like(weight)
                for slot, weight in zip(self.slots, self.own, strict=True) if slot.trained
            ]
        )  # fmt: skip
        self.reduced = group > 1
        self.flat_gradient = torch.zeros(padded, **options) if self.reduced else None  # type: ignore[call-overload]
        self.gradients: list[Tensor | None] = [None] * len(self.slots)
        self._targets: list[Tensor] = []
        self._optimizer: torch.optim.SGD | None = None
        self._gradient_views = self._views(self.flat_gradient, starts)

    def _views(self, flat: Tensor | None, like: list[Tensor]) -> list[Tensor | None]:
        if flat is None:
            return [None] * len(like)
        pieces = flat[: self.total].split(self.sizes)
        return [piece.view(x.shape) for piece, x in zip(pieces, like, strict=True)]

    def accumulate(self, gradients: tuple[Tensor, ...]) -> None:
        """Add one chunk's gradients, one for each of ``weights``."""
        i = 0
        for n, gradient in enumerate(gradients):
            if n in self.borrowed:
                kept = self.borrowed_gradients.get(n)
                self.borrowed_gradients[n] = gradient if kept is None else kept.add_(gradient)
                continue
            kept, view = self.gradients[i], self._gradient_views[i]
            if kept is not None:
                kept.add_(gradient)
            elif view is not None:
                self.gradients[i] = view.copy_(gradient)
            else:
                self.gradients[i] = gradient
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

    def step(self, recipe: Recipe, scale: float) -> None:
        """Update the weights (or this rank's shard of them) and forget the gradients.

        Args:
            scale: factor on the gradients: global batch over the examples of this update.
        """
        if self.flat is not None and not self.shard_slots():  # of more ranks than values
            self.gradients = [None] * len(self.slots)
            return
        if not self._targets:
            self._optimizer = self._sgd(recipe)
        for group in self._optimizer.param_groups if self._optimizer else ():
            if recipe.lr and group["lr"] != recipe.lr:  # v = -lr b stays what it is
                assert self._optimizer is not None
                for target in group["params"]:
                    self._optimizer.state[target]["momentum_buffer"].mul_(group["lr"] / recipe.lr)
                group["lr"] = recipe.lr
        targets = zip(self.target_slots(), self._targets, self.target_gradients(), strict=True)
        for slot, target, gradient in targets:
            now = gradient if scale == 1 else gradient.mul_(scale)
            if slot.spec.update is not None:
                slot.spec.update.apply(target, now)
            else:
                target.grad = now
        if self._optimizer is not None:
            self._optimizer.step()
        for target in self._targets:
            target.grad = None
        self.gradients = [None] * len(self.slots)

    def _sgd(self, recipe: Recipe) -> torch.optim.SGD | None:
        """The optimizer over what this rank trains, with our velocities as its state; None where
        that is nothing."""
        buffers = self.velocities
        if self.flat is None:
            self._targets = self.own
        else:
            spans, start = self.shard_slots(), self.shard.start
            self._targets = [
                self.flat.detach()[low:high].requires_grad_() for _, low, high in spans
            ]
            buffers = [
                self.velocities[0][low - start : high - start]
                for slot, low, high in spans if slot.trained
            ]  # fmt: skip
        slots = self.target_slots()
        trained = [x for x, slot in zip(self._targets, slots, strict=True) if slot.trained]
        decays = [slot.decays for slot in slots if slot.trained]
        return sgd(trained, buffers, decays, recipe) if trained else None

    def target_slots(self) -> list[Slot]:
        """Of what this rank updates: its tensors, or the pieces of them in its shard."""
        return self.slots if self.flat is None else [slot for slot, _, _ in self.shard_slots()]

    def target_gradients(self) -> list[Tensor]:
        """Of what this rank updates: its tensors, or the pieces of them in its shard."""
        if self.flat is None:
            assert all(g is not None for g in self.gradients)
            return [g for g in self.gradients if g is not None]
        assert self.flat_gradient is not None
        return [self.flat_gradient[low:high] for _, low, high in self.shard_slots()]

    def pieces(self, flat: Tensor) -> Iterator[tuple[Slot, int, int, Tensor]]:
        """(slot, start and stop within it, values) of what this rank updates, laid end to end."""
        if self.flat is None:
            spans = [(slot, 0, length) for slot, length in zip(self.slots, self.sizes, strict=True)]
        else:
            starts = dict(zip(self.slots, accumulate(self.sizes, initial=0), strict=False))
            spans = [
                (slot, low - starts[slot], high - starts[slot])
                for slot, low, high in self.shard_slots()
            ]
        done = 0
        for slot, low, high in spans:
            yield slot, low, high, flat[done : done + high - low]
            done += high - low

    def shard_slots(self) -> list[tuple[Slot, int, int]]:
        """(slot, start, stop) in the flat buffer of what lies in this rank's shard."""
        found, start = [], 0
        for slot, length in zip(self.slots, self.sizes, strict=True):
            low, high = max(start, self.shard.start), min(start + length, self.shard.stop)
            if low < high:
                found.append((slot, low, high))
            start += length
        return found


def sgd(
    targets: list[Tensor], buffers: list[Tensor], decays: list[bool], recipe: Recipe
) -> torch.optim.SGD:
    """torch's fused SGD over ``targets`` whose momentum buffers are the tensors given.

    Args:
        decays: by target, whether it decays.
    """
    groups = [
        {"params": [t for t, d in zip(targets, decays, strict=True) if d == decay],
         "weight_decay": recipe.weight_decay if decay else 0.0}
        for decay in (True, False)
        if decay in decays
    ]  # fmt: skip
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    for target, buffer in zip(targets, buffers, strict=True):
        optimizer.state[target]["momentum_buffer"] = buffer
    return optimizer


def update(
    weight: Tensor, velocity: Tensor, gradient: Tensor, recipe: Recipe, scale: float, *, decay: bool
) -> None:
    """The paper's update of one tensor, in place and as it is written there: the reference's."""
    velocity.mul_(recipe.momentum).add_(gradient, alpha=-recipe.lr * scale)
    if decay:
        velocity.add_(weight, alpha=-recipe.weight_decay * recipe.lr)
    weight.add_(velocity)
