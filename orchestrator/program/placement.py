"""Where every layer of the model is computed: a plan's entries become one part per rank and layer.

A part is a rectangle, examples x output channels, of one layer's output. Every value of every
activation is computed by exactly one rank (or is a partial sum of several, which a ``Sum`` layer
inserted here adds up), so each exchange in the forward has one transposed exchange in the
backward.

Examples are counted within a *chunk*: what a layer processes at once. That is a microbatch, and
less behind an exchange that goes in turns or in layers that update in smaller batches
(``training.layer_batch``): chunks only get finer from the image to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, NoReturn

from orchestrator.errors import InputError
from orchestrator.models.layers import SizedLayer, Sum
from orchestrator.models.model import Model
from orchestrator.models.ranges import Ranges, normalise, shift
from orchestrator.plan import Axis, Entry, Plan


class Part(NamedTuple):
    """One rank's share of one layer.

    Args:
        batch: examples, within the chunk.
        out: output channels it computes.
        reads: input channels it needs for them.
    """

    batch: Ranges
    out: Ranges
    reads: Ranges


class PlacedLayer(NamedTuple):
    """A layer with its parts, by rank within one replica, ranks ascending.

    Args:
        chunk: examples at once.
        update: examples after which it is updated, where that is less than the global batch
            (``training.layer_batch``), else 0.
        partial: its output is a partial sum.
    """

    sized: SizedLayer
    entry: int
    stage: int
    chunk: int
    update: int
    partial: bool
    parts: dict[int, Part]


@dataclass(frozen=True)
class Placement:
    """The whole chain, placed.

    Args:
        layers: with the ``Sum`` layers and the loss.
        stages: ranks of every pipeline stage, in layer order.
        microbatch: examples of a microbatch in one replica.
        n_microbatches: of a step.
    """

    layers: tuple[PlacedLayer, ...]
    stages: tuple[tuple[int, ...], ...]
    microbatch: int
    n_microbatches: int


def place(plan: Plan, model: Model) -> Placement:
    """Give every layer of ``model`` its ranks and rectangles.

    Raises:
        InputError: layers that are unknown, out of order, missing or placed twice; channels, inputs
            or examples that do not divide; exchanges and layer batches that cannot be.
    """
    entry_of = _entries_by_layer(plan, model)
    stage_of = _stages(plan)
    updates = update_examples(plan, model)
    microbatch = plan.global_batch_size // (plan.replicas * plan.n_microbatches)
    chunks = _chunks(plan, model, entry_of, updates, microbatch)
    strided = any(entry.exchange == "scatter" for entry in plan.placement)
    placed: list[PlacedLayer] = []
    cutters: dict[tuple[int, int], _Cutter] = {}
    for i, sized in enumerate(model.layers):
        number, chunk = entry_of[min(i, len(entry_of) - 1)], chunks[i]
        if (number, chunk) not in cutters:
            pieces = chunk // chunks[-1] if strided else 1
            cutters[number, chunk] = _Cutter(plan, number, sized, chunk, pieces)
        cutter = cutters[number, chunk]
        partial = cutter.is_partial(sized)
        stage = stage_of[number]
        update = updates.get(model.layers[min(i, len(entry_of) - 1)].name, 0)
        parts = cutter.parts(sized)
        placed.append(PlacedLayer(sized, number, stage, chunk, update, partial, parts))
        if partial:
            shape = sized.output_shape
            total = SizedLayer(Sum(name=f"{sized.name}.sum"), shape, shape)
            parts = cutter.parts(total)
            placed.append(PlacedLayer(total, number, stage, chunk, update, False, parts))
    ranks = [
        tuple(
            sorted({r for n, e in enumerate(plan.placement) if stage_of[n] == s for r in e.ranks})
        )
        for s in range(stage_of[-1] + 1)
    ]
    return Placement(tuple(placed), tuple(ranks), microbatch, plan.n_microbatches)


def layer_span(model: Model, text: str, place: str) -> range:
    """Positions of ``first..last`` or of one name; the loss has none."""
    first, _, last = text.partition("..")
    names = [layer.name for layer in model.layers[:-1]]
    for name in (first, last or first):
        if name not in names:
            raise InputError(
                f"{model.name} has no layer {name!r}; its layers: {' '.join(names)}", place
            )
    span = range(names.index(first), names.index(last or first) + 1)
    if not span:
        raise InputError(f"{text!r} runs backwards: {last} comes before {first}", place)
    return span


def _entries_by_layer(plan: Plan, model: Model) -> list[int]:
    """The entry of every layer but the loss; each layer exactly once, in order."""
    entry_of: list[int] = []
    for number, entry in enumerate(plan.placement):
        place = plan.place(("placement", number, "layers"))
        span = layer_span(model, entry.layers, place)
        if span.start != len(entry_of):
            expected = model.layers[len(entry_of)].name
            twice = span.start < len(entry_of)
            raise InputError(
                f"{entry.layers!r} starts at {model.layers[span.start].name}, which "
                + ("is placed already" if twice else "leaves layers out"),
                place,
                "nothing is left to place, drop this entry"
                if expected == "loss"
                else f"start this entry at {expected}",
            )
        entry_of += [number] * len(span)
    missing = [layer.name for layer in model.layers[len(entry_of) : -1]]
    if missing:
        raise InputError(
            f"layers without a rank: {' '.join(missing)}",
            plan.place(("placement",)),
            f"end the last entry at {missing[-1]}, or add an entry {missing[0]}..{missing[-1]}",
        )
    return entry_of


def _stages(plan: Plan) -> list[int]:
    """Pipeline stage of every entry: a new one starts where it shares no rank with the last one.

    Under ZBVZeroBubble every entry is a stage, since the V turns round on one rank.
    """
    if plan.schedule == "ZBVZeroBubble":
        return list(range(len(plan.placement)))
    stages, ranks = [0], set(plan.placement[0].ranks)
    for entry in plan.placement[1:]:
        if ranks.isdisjoint(entry.ranks):
            stages.append(stages[-1] + 1)
            ranks = set(entry.ranks)
        else:
            stages.append(stages[-1])
            ranks |= set(entry.ranks)
    return stages


def update_examples(plan: Plan, model: Model) -> dict[str, int]:
    """By layer name, examples after which it is updated: the recipe's variable batch size."""
    updates: dict[str, int] = {}
    for text, examples in (plan.training.layer_batch or {}).items():
        place = plan.place(("training", "layer_batch", text))
        span = layer_span(model, text, place)
        if span.stop != len(model.layers) - 1:
            last = model.layers[-2].name
            raise InputError(
                f"{text!r} ends before the last layer; layers that update in smaller batches "
                f"must reach {last}, where the loss is",
                place,
                f"{model.layers[span.start].name}..{last}: {examples}",
            )
        if plan.replicas > 1:
            raise InputError(
                "layer_batch with replicas: a slice of the batch would be spread over the copies",
                place,
                "replicas: 1 and a batch split over the ranks instead",
            )
        if updates and examples not in updates.values():
            raise InputError(
                f"{text!r} updates after {examples} examples and layers before it after "
                f"{next(iter(updates.values()))}; allowed: one number for all",
                place,
                "keep one line of layer_batch",
            )
        updates.update({model.layers[i].name: examples for i in span})
    if plan.global_batch_size in updates.values():  # once a step, as every other layer
        return {}
    return updates


def _chunks(
    plan: Plan, model: Model, entry_of: list[int], updates: dict[str, int], microbatch: int
) -> list[int]:
    """Examples at once, by layer, the loss included."""
    chunks = []
    chunk = microbatch
    for i, layer in enumerate(model.layers[:-1]):
        number = entry_of[i]
        entry = plan.placement[number]
        starts = i == 0 or entry_of[i - 1] != number
        if starts and entry.exchange != "gather" and number:
            turns = dict(plan.placement[number - 1].grid.axes).get("batch", 1)
            chunk = _finer(chunk, microbatch // turns, microbatch % turns, plan, number, "turns")
        if layer.name in updates:
            size = updates[layer.name]
            chunk = _finer(chunk, size, microbatch % size, plan, number, "layer_batch")
        chunks.append(chunk)
    if updates and all(x.name in updates for x in model.layers if x.has_weights):
        raise InputError(
            "every layer with weights is in layer_batch: that is a smaller batch for all",
            plan.place(("training", "layer_batch")),
            f"global_batch_size: {min(updates.values())}",
        )
    finer = (i for i, c in enumerate(chunks) if c < microbatch or model.layers[i].name in updates)
    refined = next(finer, None)
    stages = _stages(plan)
    if refined is not None and stages[entry_of[refined]] != stages[-1]:
        raise InputError(
            f"{model.layers[refined].name} starts to work in turns but pipeline stages follow it",
            plan.place(("placement", entry_of[refined])),
            "let the layers that take turns be the last stage",
        )
    return [*chunks, chunks[-1]]


def _finer(now: int, wanted: int, rest: int, plan: Plan, number: int, why: str) -> int:
    size = min(now, wanted) if wanted else 0
    if not wanted or rest or now % size or wanted % size:
        raise InputError(
            f"a microbatch of {plan.global_batch_size // plan.replicas // plan.n_microbatches} "
            f"examples does not divide into {why} of {wanted or 'less than one'}",
            plan.place(("placement", number)),
            "change global_batch_size",
        )
    return size


class _Cutter:
    """Cuts the outputs of one entry's layers over its ranks.

    Args:
        first: the first of these layers, for messages.
        chunk: examples at once.
        pieces: equal runs of examples of which every rank has its share.
    """

    def __init__(self, plan: Plan, number: int, first: SizedLayer, chunk: int, pieces: int) -> None:
        self.plan, self.number = plan, number
        self.entry: Entry = plan.placement[number]
        self.axes = self.entry.grid.axes
        self.places = [self._coordinates(position) for position in range(len(self.entry.ranks))]
        # by rank, along the axis that cuts channels: of the outputs, or of the inputs
        self.along = [at.get("channel", at.get("input", 0)) for at in self.places]
        self.batches = [self._batch(at, first, chunk, pieces) for at in self.places]
        self._found: dict[tuple[object, ...], dict[int, Part]] = {}

    def is_partial(self, sized: SizedLayer) -> bool:
        """Whether the ranks' outputs are partial sums."""
        return sized.has_weights and dict(self.axes).get("input", 1) > 1

    def parts(self, sized: SizedLayer) -> dict[int, Part]:
        """By rank, ascending; ranks that get no example are left out.

        Layers whose channels are given out alike have these in common.
        """
        channels: dict[int, tuple[Ranges, Ranges]] = {}  # by place along the channels' axis
        for place, at in zip(self.along, self.places, strict=True):
            if place not in channels:
                channels[place] = self._channels(sized, at)
        key = (sized.kind == "loss", *channels.values())
        if key not in self._found:
            self._found[key] = self._parts(channels, loss=sized.kind == "loss")
        return self._found[key]

    def _parts(self, channels: dict[int, tuple[Ranges, Ranges]], *, loss: bool) -> dict[int, Part]:
        found = {}
        ranks = zip(self.entry.ranks, self.places, self.along, self.batches, strict=True)
        for rank, at, place, batch in ranks:
            out, reads = channels[place]
            mine = self._loss_batch(batch, at) if loss else batch
            if mine and out:
                found[rank] = Part(mine, out, reads)
        return dict(sorted(found.items()))

    def _coordinates(self, position: int) -> dict[Axis, int]:
        """Row-major place of the position-th rank in the grid."""
        found: dict[Axis, int] = {}
        for axis, count in reversed(self.axes):
            position, found[axis] = divmod(position, count)
        return found

    def _channels(self, sized: SizedLayer, at: dict[Axis, int]) -> tuple[Ranges, Ranges]:
        """Output channels that a rank computes, input channels that it needs for them."""
        everything = ((0, sized.out_channels),)
        out: Ranges = everything
        if sized.kind == "loss":
            return out, sized.reads(out)
        if "channel" in at:
            out = self._share(sized, "channel", sized.out_channels, at, strict=sized.has_weights)
        elif "input" in at and sized.has_weights:
            reads = self._share(sized, "input", sized.in_channels, at, strict=True)
            return normalise(t.out for t in sized.terms(everything, reads)), reads
        elif "input" in at:
            out = self._share(sized, "input", sized.out_channels, at, strict=False)
        out = normalise(out)
        return out, sized.reads(out)

    def _batch(self, at: dict[Axis, int], first: SizedLayer, chunk: int, pieces: int) -> Ranges:
        """A rank's examples, in ``pieces`` equal runs where an exchange goes by scatter."""
        if "batch" not in at:
            return ((0, chunk),)
        run = chunk // pieces
        share = self._share(first, "batch", run, at, strict=True)
        return normalise(r for p in range(pieces) for r in shift(share, p * run))

    def _loss_batch(self, batch: Ranges, at: dict[Axis, int]) -> Ranges:
        """The loss of each example is computed once: ranks that share a batch share it out."""
        count, index = 1, 0
        for axis, n in self.axes:
            if axis != "batch":
                count, index = count * n, index * n + at[axis]
        if count == 1:
            return batch
        low, high = batch[0][0], batch[-1][1]
        bounds = [low + (high - low) * i // count for i in range(count + 1)]
        return normalise([(bounds[index], bounds[index + 1])])

    def _share(
        self, sized: SizedLayer, axis: Axis, total: int, at: dict[Axis, int], *, strict: bool
    ) -> Ranges:
        """What a rank has of ``total`` things; with ``strict`` they must divide exactly."""
        shares = self.entry.shares
        if shares is None:  # equal ones, maybe very many
            count, place = dict(self.axes)[axis], at[axis]
            if strict and total % count:
                self._refuse(sized, axis, total, (1,) * count)
            return ((total * place // count, total * (place + 1) // count),)
        whole = sum(shares)
        if strict and total % whole and any(total * share % whole for share in shares):
            self._refuse(sized, axis, total, shares)
        return (_in_shares(total, shares)[at[axis]],)

    def _refuse(
        self, sized: SizedLayer, axis: Axis, total: int, shares: tuple[int, ...]
    ) -> NoReturn:
        count = len(shares)
        what = {"batch": "examples", "channel": "output channels", "input": "input channels"}[axis]
        low = total // count
        even = [low + (i < total % count) for i in range(count)]
        key = "shares" if self.entry.shares else "split"
        remedy = f"shares: {even} in an entry of its own"
        if axis == "batch":
            remedy = f"a global_batch_size that gives each microbatch a multiple of {sum(shares)}"
        elif total < count:
            remedy = f"at most {total} rank{'s' * (total > 1)} in an entry of its own"
        raise InputError(
            f"{sized.name}: {total} {what} do not divide over {count} ranks"
            + (f" in shares {list(shares)}" if self.entry.shares else ""),
            self.plan.place(("placement", self.number, key)),
            remedy,
        )


@lru_cache(maxsize=4096)
def _in_shares(total: int, shares: tuple[int, ...]) -> Ranges:
    """``total`` things given out in these shares, rounded down; some may be empty."""
    whole, taken, bounds = sum(shares), 0, [0]
    for share in shares:
        taken += share
        bounds.append(total * taken // whole)
    return tuple(pairwise(bounds))
