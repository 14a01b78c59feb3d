"""Where every layer of the model is computed: a plan's entries become one part per rank and layer.

A part is some examples and a box of one layer's output. Every value of every activation is computed
by exactly one rank, or is a partial sum of several, which a ``Sum`` layer inserted here adds up; or
all ranks of an entry compute all of it (``split: none`` over several ranks).

Examples are counted within a *chunk*: what a layer processes at once. That is a microbatch, and
less behind an exchange that goes in turns or in layers that update in smaller batches
(``training.layer_batch``): chunks only get finer from the input to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, NoReturn

from orchestrator.errors import InputError
from orchestrator.models.box import Box, is_empty
from orchestrator.models.combine import Sum
from orchestrator.models.layer import INPUT, LABELS, Cut, Layer, SizedLayer, Statistics
from orchestrator.models.model import Model
from orchestrator.models.ranges import Ranges, normalise, shift
from orchestrator.plan import Axis, Entry, Plan
from orchestrator.program.selection import selected
from orchestrator.schedules import SCHEDULES

FROM_INPUT, FROM_LABELS = -1, -2  # sources that are data, not layers


class Part(NamedTuple):
    """One rank's share of one layer.

    Args:
        batch: examples, within the chunk.
        out: the box of the output that it computes.
        reads: the box of each input that it needs for it.
        rows: of the output; None for one for each example.
        batches: rows of each input; None for one for each example.
    """

    batch: Ranges
    out: Box
    reads: tuple[Box, ...]
    rows: Ranges | None = None
    batches: tuple[Ranges, ...] | None = None


class PlacedLayer(NamedTuple):
    """A layer with its parts, by rank within one replica, ranks ascending.

    Args:
        sources: positions of the placed layers that it reads; :data:`FROM_INPUT`,
            :data:`FROM_LABELS` for data.
        chunk: examples at once.
        update: examples after which it is updated, where that is less than the global batch
            (``training.layer_batch``), else 0.
        partial: its output is a partial sum.
        replicated: every rank computes all of it.
    """

    sized: SizedLayer
    sources: tuple[int, ...]
    entry: int
    stage: int
    chunk: int
    update: int
    partial: bool
    replicated: bool
    parts: dict[int, Part]


@dataclass(frozen=True)
class Placement:
    """The whole model, placed.

    Args:
        layers: with the ``Sum`` layers and the loss, each behind those that it reads.
        stages: ranks of every pipeline stage, in layer order.
        microbatch: examples of a microbatch in one replica.
        n_microbatches: of a step.
    """

    layers: tuple[PlacedLayer, ...]
    stages: tuple[tuple[int, ...], ...]
    microbatch: int
    n_microbatches: int


def place(plan: Plan, model: Model) -> Placement:
    """Give every layer of ``model`` its ranks and boxes.

    Raises:
        InputError: layers that are unknown, out of order, missing or placed twice; an axis that a
            layer cannot be cut on; channels, inputs or examples that do not divide; exchanges and
            layer batches that cannot be.
    """
    entry_of, order = _entries_by_layer(plan, model)
    stage_of = _stages(plan)
    updates = update_examples(plan, model)
    microbatch = plan.global_batch_size // (plan.replicas * plan.n_microbatches)
    chunks = _chunks(plan, model, entry_of, order, updates, microbatch)
    strided = any(entry.exchange == "scatter" for entry in plan.placement)
    placed: list[PlacedLayer] = []
    where = {INPUT: FROM_INPUT, LABELS: FROM_LABELS}
    cutters: dict[tuple[int, int], _Cutter] = {}
    for i, chunk in zip(order, chunks, strict=True):
        sized = model.layers[i]
        number = entry_of[i]
        if (number, chunk) not in cutters:
            pieces = chunk // chunks[-1] if strided else 1
            cutters[number, chunk] = _Cutter(plan, number, sized, chunk, pieces)
        cutter = cutters[number, chunk]
        # the loss goes with the layer that gives the scores
        update = updates.get(model.layers[min(i, len(model.layers) - 2)].name, 0)
        statistics = cutter.statistics(sized)
        if statistics:
            gather, parts = cutter.gathering(sized, statistics)
            sources = tuple([where[source] for source in gather.sources])
            where[gather.name] = len(placed)
            frame = (number, stage_of[number], chunk, update)
            placed.append(PlacedLayer(gather, sources, *frame, False, False, parts))
            sized = cutter.applying(sized, gather, statistics)
        partial = cutter.is_partial(sized)
        sources = tuple([where[source] for source in sized.sources])
        common = (number, stage_of[number], chunk, update)
        parts = cutter.parts(sized)
        where[sized.name] = len(placed)
        # the loss of an example is computed once, by one of the ranks that hold its scores
        replicated = cutter.replicates and not sized.layer.is_loss
        placed.append(PlacedLayer(sized, sources, *common, partial, replicated, parts))
        if partial:
            total = SizedLayer(
                Sum(name=f"{sized.name}.sum"), (sized.output,), sized.output, (sized.name,)
            )
            sources, where[sized.name] = (where[sized.name],), len(placed)
            parts = cutter.parts(total)
            placed.append(PlacedLayer(total, sources, *common, False, False, parts))
    ranks = [
        tuple(
            sorted({r for n, e in enumerate(plan.placement) if stage_of[n] == s for r in e.ranks})
        )
        for s in range(stage_of[-1] + 1)
    ]
    return Placement(tuple(placed), tuple(ranks), microbatch, plan.n_microbatches)


def _entries_by_layer(plan: Plan, model: Model) -> tuple[dict[int, int], list[int]]:
    """The entry of every layer, and the order in which layers are placed, the loss last.

    Entry by entry, in the model's order within each; a layer comes behind all that it reads.
    """
    entry_of: dict[int, int] = {}
    order: list[int] = []
    names = [layer.name for layer in model.layers]
    for number, entry in enumerate(plan.placement):
        location = plan.place(("placement", number, "layers"))
        wanted = selected(model, entry.layers, location)
        text = entry.layers if isinstance(entry.layers, str) else ", ".join(entry.layers)
        twice = [i for i in wanted if i in entry_of]
        if twice:
            free = [names[i] for i in range(len(names) - 1) if i not in entry_of]
            how = "starts at" if twice[0] == wanted[0] else "holds"
            raise InputError(
                f"{text!r} {how} {names[twice[0]]}, which is placed already",
                location,
                f"start this entry at {free[0]}" if free
                else "nothing is left to place, drop this entry",
            )  # fmt: skip
        entry_of |= dict.fromkeys(wanted, number)
        order += wanted
    missing = [i for i in range(len(names) - 1) if i not in entry_of]
    if missing:
        _refuse_missing(plan, model, entry_of, missing)
    _check_order(plan, model, entry_of, order)
    loss = len(names) - 1
    entry_of[loss] = entry_of[loss - 1]
    return entry_of, [*order, loss]


def _refuse_missing(
    plan: Plan, model: Model, entry_of: dict[int, int], missing: list[int]
) -> NoReturn:
    names = [layer.name for layer in model.layers]
    run = [i for i in missing if i - missing[0] == missing.index(i)]
    following = entry_of.get(run[-1] + 1)
    if following is not None and run[0] > 0:
        entry = plan.placement[following]
        raise InputError(
            f"{entry.layers!r} starts at {names[run[-1] + 1]}, which leaves layers out",
            plan.place(("placement", following, "layers")),
            f"start this entry at {names[run[0]]}",
        )
    a, b = names[missing[0]], names[missing[-1]]
    raise InputError(
        f"layers without a rank: {' '.join(names[i] for i in missing)}",
        plan.place(("placement",)),
        f"end the last entry at {b}, or add an entry {a}..{b}",
    )


def _check_order(plan: Plan, model: Model, entry_of: dict[int, int], order: list[int]) -> None:
    position = {model.layers[i].name: p for p, i in enumerate(order)}
    for p, i in enumerate(order):
        for source in model.layers[i].sources:
            if position.get(source, -1) > p:
                name, number = model.layers[i].name, entry_of[model.index[source]]
                raise InputError(
                    f"{name} reads {source}, which placement[{number}] places later",
                    plan.place(("placement", entry_of[i], "layers")),
                    f"move the entry with {source} before this one",
                )


def _stages(plan: Plan) -> list[int]:
    """Pipeline stage of every entry: a new one starts where it shares no rank with the last one.

    Or every entry is a stage, if the schedule says so.
    """
    if SCHEDULES[plan.schedule].entry_per_stage:
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
        location = plan.place(("training", "layer_batch", text))
        span = selected(model, text, location)
        if span != tuple(range(span[0], len(model.layers) - 1)):
            last = model.layers[-2].name
            raise InputError(
                f"{text!r} ends before the last layer; layers that update in smaller batches "
                f"must reach {last}, where the loss is",
                location,
                f"{model.layers[span[0]].name}..{last}: {examples}",
            )
        if plan.replicas > 1:
            raise InputError(
                "layer_batch with replicas: a slice of the batch would be spread over the copies",
                location,
                "replicas: 1 and a batch split over the ranks instead",
            )
        if updates and examples not in updates.values():
            raise InputError(
                f"{text!r} updates after {examples} examples and layers before it after "
                f"{next(iter(updates.values()))}; allowed: one number for all",
                location,
                "keep one line of layer_batch",
            )
        updates.update({model.layers[i].name: examples for i in span})
    if plan.global_batch_size in updates.values():  # once a step, as every other layer
        return {}
    return updates


def _chunks(
    plan: Plan,
    model: Model,
    entry_of: dict[int, int],
    order: list[int],
    updates: dict[str, int],
    microbatch: int,
) -> list[int]:
    """Examples at once, by layer in the order of placement, the loss included."""
    chunks: list[int] = []
    chunk = microbatch
    for position, i in enumerate(order[:-1]):
        number, name = entry_of[i], model.layers[i].name
        entry = plan.placement[number]
        starts = position == 0 or entry_of[order[position - 1]] != number
        if starts and entry.exchange != "gather" and number:
            turns = dict(plan.placement[number - 1].grid.axes).get("batch", 1)
            chunk = _finer(chunk, microbatch // turns, microbatch % turns, plan, number, "turns")
        if name in updates:
            size = updates[name]
            chunk = _finer(chunk, size, microbatch % size, plan, number, "layer_batch")
        chunks.append(chunk)
    if updates and all(x.name in updates for x in model.layers if x.has_weights):
        raise InputError(
            "every layer with weights is in layer_batch: that is a smaller batch for all",
            plan.place(("training", "layer_batch")),
            f"global_batch_size: {min(updates.values())}",
        )
    finer = (
        i
        for i, c in zip(order, chunks, strict=False)
        if c < microbatch or model.layers[i].name in updates
    )
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
        self.plan, self.number, self.chunk = plan, number, chunk
        self.entry: Entry = plan.placement[number]
        self.axes = self.entry.grid.axes
        self.replicates = not self.axes and len(self.entry.ranks) > 1
        self.inner = [axis for axis, _ in self.axes if axis != "batch"]
        self.places = [self._coordinates(position) for position in range(len(self.entry.ranks))]
        # by rank, its place along the axes other than the batch
        self.along = [tuple([at[axis] for axis in self.inner]) for at in self.places]
        self.batches = [self._batch(at, first, chunk, pieces) for at in self.places]
        self._found: dict[tuple[object, ...], dict[int, Part]] = {}

    def is_partial(self, sized: SizedLayer) -> bool:
        """Whether the ranks' outputs are partial sums."""
        return dict(self.axes).get("input", 1) > 1 and _sums(sized)

    def parts(self, sized: SizedLayer) -> dict[int, Part]:
        """By rank, ascending; ranks that get no example are left out.

        Layers whose boxes are given out alike have these in common.
        """
        boxes: dict[tuple[int, ...], tuple[Box, tuple[Box, ...]]] = {}
        for place, at in zip(self.along, self.places, strict=True):
            if place not in boxes:
                boxes[place] = self._boxes(sized, at)
        layer = sized.layer
        rows = layer if layer.has_rows else None
        key = (layer.is_loss, rows, *boxes.values())
        if key not in self._found:
            self._found[key] = self._parts(boxes, rows, loss=layer.is_loss)
        return self._found[key]

    def statistics(self, sized: SizedLayer) -> Statistics | None:
        """The two halves of a layer that the cut takes apart."""
        counts: dict[str, int] = {axis: count for axis, count in self.axes if count > 1}
        plan = self.plan
        each = plan.global_batch_size // plan.replicas
        cut = Cut(counts, tuple(self.batches), self.chunk, each, plan.global_batch_size)
        try:
            return sized.layer.statistics(sized, cut)
        except InputError as error:
            location = plan.place(("placement", self.number))
            raise InputError(error.message, location, error.remedy) from error

    def gathering(
        self, sized: SizedLayer, statistics: Statistics
    ) -> tuple[SizedLayer, dict[int, Part]]:
        """The half that says of each part what is needed of it, and its parts."""
        gather = SizedLayer.of(statistics.gather, *sized.inputs, sources=sized.sources)
        value, width = sized.inputs[0], statistics.width
        found = {}
        for rank, at, batch in zip(self.entry.ranks, self.places, self.batches, strict=True):
            reads = list(value.whole)
            for cut in self.inner:
                name = "channel" if cut == "input" else cut
                if name in value.axes:
                    position = value.axes.index(name)
                    total = value.shape[position]
                    reads[position] = normalise(self._share(sized, cut, total, at, strict=False))
            number = 0
            for counted in statistics.axes:
                index = next((at[axis] for axis in at if axis == counted), 0)
                number = number * dict[str, int](self.axes).get(counted, 1) + index
            mine = ((width * number, width * (number + 1)),)
            out = gather.layer.gathered(gather, tuple(reads), mine)
            if batch and not is_empty(tuple(reads)):
                others = gather.layer.reads(gather, out)[1:]
                batches = (batch,) * len(gather.inputs)
                rows = gather.layer.rows(batch)
                found[rank] = Part(batch, out, (tuple(reads), *others), rows, batches)
        return gather, dict(sorted(found.items()))

    def applying(self, sized: SizedLayer, gather: SizedLayer, statistics: Statistics) -> SizedLayer:
        """The half that puts together what was gathered."""
        layer = statistics.apply
        values = dict(zip(sized.sources, sized.inputs, strict=True))
        values[gather.name] = gather.output
        return SizedLayer(
            layer, tuple([values[source] for source in layer.inputs]), sized.output, layer.inputs
        )

    def _parts(
        self,
        boxes: dict[tuple[int, ...], tuple[Box, tuple[Box, ...]]],
        rows: Layer | None,
        *,
        loss: bool,
    ) -> dict[int, Part]:
        found = {}
        ranks = zip(self.entry.ranks, self.places, self.along, self.batches, strict=True)
        for rank, at, place, batch in ranks:
            out, reads = boxes[place]
            mine = self._loss_batch(rank, batch, at) if loss else batch
            if mine and not is_empty(out):
                found[rank] = Part(mine, out, reads)
                if rows is not None:
                    batches = tuple([rows.input_rows(n, mine) for n in range(len(reads))])
                    found[rank] = Part(mine, out, reads, rows.rows(mine), batches)
        return dict(sorted(found.items()))

    def _coordinates(self, position: int) -> dict[Axis, int]:
        """Row-major place of the position-th rank in the grid."""
        found: dict[Axis, int] = {}
        for axis, count in reversed(self.axes):
            position, found[axis] = divmod(position, count)
        return found

    def _boxes(self, sized: SizedLayer, at: dict[Axis, int]) -> tuple[Box, tuple[Box, ...]]:
        """The box of the output that a rank computes, and what it needs for it."""
        value = sized.output
        out = list(value.whole)
        if sized.layer.is_loss:
            if "token" in at and "token" in value.axes:
                out[0] = self._share(sized, "token", value.size("token"), at, strict=False)
            return tuple(out), sized.reads(tuple(out))
        sums = "input" in at and _sums(sized)
        for axis in self.inner:
            name = "channel" if axis == "input" else axis
            if axis == "input" and sums:
                continue
            self._check_axis(sized, name)
            position = value.axes.index(name)
            strict = axis == "channel" and sized.has_weights
            out[position] = normalise(
                self._share(sized, axis, value.shape[position], at, strict=strict)
            )
        box = tuple(out)
        if is_empty(box):
            return box, tuple([()] * len(sized.inputs))
        if not sums:
            return box, self._reads(sized, box)
        (before,) = sized.inputs
        channels = self._share(sized, "input", before.channels, at, strict=True)
        touched = sized.layer.from_inputs(sized, channels)
        assert touched is not None
        channel = value.axes.index("channel")
        out[channel] = touched[channel]
        reads = list(sized.reads(tuple(out))[0])
        reads[before.axes.index("channel")] = channels
        return tuple(out), (tuple(reads),)

    def _reads(self, sized: SizedLayer, box: Box) -> tuple[Box, ...]:
        """What a layer reads for a box, or its refusal with the line of the plan."""
        try:
            return sized.reads(box)
        except InputError as error:
            key = "shares" if self.entry.shares else "split"
            location = self.plan.place(("placement", self.number, key))
            raise InputError(error.message, location, error.remedy) from error

    def _check_axis(self, sized: SizedLayer, axis: str) -> None:
        """Refuse an axis that a layer cannot be cut on, by name and with a reason."""
        axes = sized.output.axes
        reason = f"its output has no {axis}" if axis not in axes else sized.layer.uncut(sized, axis)
        if reason:
            suits = ["batch", *(x for x in axes if not sized.layer.uncut(sized, x))]
            suits = [x for x in suits if x != "width"]
            raise InputError(
                f"{sized.name} cannot be split by {axis}: {reason}; it can by {', '.join(suits)}",
                self.plan.place(("placement", self.number, "split")),
                f"place {sized.name} in an entry of its own, with split: {suits[-1]} or none",
            )

    def _batch(self, at: dict[Axis, int], first: SizedLayer, chunk: int, pieces: int) -> Ranges:
        """A rank's examples, in ``pieces`` equal runs where an exchange goes by scatter."""
        if "batch" not in at:
            return ((0, chunk),)
        run = chunk // pieces
        share = self._share(first, "batch", run, at, strict=True)
        return normalise(r for p in range(pieces) for r in shift(share, p * run))

    def _loss_batch(self, rank: int, batch: Ranges, at: dict[Axis, int]) -> Ranges:
        """The loss of each example is computed once: ranks that share a batch share it out."""
        count, index = 1, 0
        for axis, n in self.axes:
            if axis not in ("batch", "token"):
                count, index = count * n, index * n + at[axis]
        if self.replicates:
            count, index = len(self.entry.ranks), self.entry.ranks.index(rank)
        if count == 1:
            return batch
        low, high = batch[0][0], batch[-1][1]
        bounds = [low + (high - low) * i // count for i in range(count + 1)]
        return normalise([(bounds[index], bounds[index + 1])])

    def _share(
        self, sized: SizedLayer, axis: Axis, total: int, at: dict[Axis, int], *, strict: bool
    ) -> Ranges:
        """What a rank has of ``total`` things; with ``strict`` they must divide exactly."""
        shares = self.entry.shares_of(axis)
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


def _sums(sized: SizedLayer) -> bool:
    """Whether a layer is a sum over its input channels, so that some of them give a partial sum."""
    return sized.layer.from_inputs(sized, ((0, 1),)) is not None
