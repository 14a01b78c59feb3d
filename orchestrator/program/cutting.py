"""Cuts one entry's layers over its ranks: a box of the output, and some examples, for each.

``split: {batch: 2, channel: 2}`` of a layer of 8 channels, with 4 examples at once::

                       channels 0..3   channels 4..7
    examples 0 and 1      rank 0          rank 1
    examples 2 and 3      rank 2          rank 3
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, NoReturn

from orchestrator.errors import InputError
from orchestrator.models.box import Box, is_empty
from orchestrator.models.layer import Cut, Layer, Statistics
from orchestrator.models.ranges import Ranges, normalise, shift
from orchestrator.models.sized import SizedLayer
from orchestrator.plan import AXES, Entry, Plan, Shares
from orchestrator.plan.problem import listed, nearest


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


class Cutter:
    """Cuts the outputs of one entry's layers over its ranks.

    Args:
        first: the first of these layers, for messages.
        chunk: examples at once.
        pieces: equal runs of examples of which every rank has its share.
        known: axes that can be meant: of a plan, and of any layer of the model.
    """

    def __init__(
        self,
        plan: Plan,
        number: int,
        first: SizedLayer,
        chunk: int,
        pieces: int,
        known: frozenset[str],
    ) -> None:
        self.plan, self.number, self.chunk = plan, number, chunk
        self.entry: Entry = plan.placement[number]
        self.grid = self.entry.grid
        self.axes = self.grid.axes
        self.replicates = not self.axes and len(self.entry.ranks) > 1
        self.inner = [axis for axis, _ in self.axes if axis != "batch"]
        self.places = [self._coordinates(position) for position in range(len(self.entry.ranks))]
        # by rank, its place along the axes other than the batch
        self.along = [tuple([at[axis] for axis in self.inner]) for at in self.places]
        self.pieces, self.known = pieces, known
        self.batches = [self._batch(at, first, chunk) for at in self.places]
        self._found: dict[tuple[object, ...], dict[int, Part]] = {}

    def is_partial(self, sized: SizedLayer) -> bool:
        """Whether the ranks' outputs are partial sums."""
        return self.grid.parts("input") > 1 and _sums(sized)

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
        own = tuple(_positions(sized, self.inner)) if layer.is_loss else None
        key = (own, rows, *boxes.values())
        if key not in self._found:
            self._found[key] = self._parts(boxes, rows, own)
        return self._found[key]

    def statistics(self, sized: SizedLayer) -> Statistics | None:
        """The two halves of a layer that the cut takes apart."""
        counts = {axis: count for axis, count in self.axes if count > 1}
        plan = self.plan
        each = plan.global_batch_size // plan.replicas
        cut = Cut(counts, tuple(self.batches), self.chunk, each, plan.global_batch_size)
        try:
            return sized.statistics(cut)
        except InputError as error:
            location = plan.location(("placement", self.number))
            raise InputError(error.message, location, error.remedy) from error

    def gathering(
        self, sized: SizedLayer, statistics: Statistics
    ) -> tuple[SizedLayer, dict[int, Part]]:
        """The half that says of each part what is needed of it, and its parts."""
        gather = SizedLayer.of(
            statistics.gather, *sized.inputs, sources=sized.sources, half_of=sized.name
        )
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
                index = at.get(counted, 0)
                number = number * self.grid.parts(counted) + index
            positions = ((width * number, width * (number + 1)),)
            out = gather.layer.gathered(gather, tuple(reads), positions)
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
        own: tuple[str, ...] | None,
    ) -> dict[int, Part]:
        """By rank, ascending.

        Args:
            own: of the loss, the axes along which each rank has scores of its own; else None.
        """
        found = {}
        ranks = zip(self.entry.ranks, self.places, self.along, self.batches, strict=True)
        for rank, at, place, batch in ranks:
            out, reads = boxes[place]
            examples = batch if own is None else self._loss_batch(rank, batch, at, own)
            if examples and not is_empty(out):
                found[rank] = Part(examples, out, reads)
                if rows is not None:
                    batches = tuple([rows.input_rows(n, examples) for n in range(len(reads))])
                    found[rank] = Part(examples, out, reads, rows.rows(examples), batches)
        return dict(sorted(found.items()))

    def _coordinates(self, position: int) -> dict[str, int]:
        """Row-major place of the position-th rank in the grid."""
        found: dict[str, int] = {}
        for axis, count in reversed(self.axes):
            position, found[axis] = divmod(position, count)
        return found

    def _boxes(self, sized: SizedLayer, at: dict[str, int]) -> tuple[Box, tuple[Box, ...]]:
        """The box of the output that a rank computes, and what it needs for it."""
        value = sized.output
        out = list(value.whole)
        if sized.layer.is_loss:
            for axis in _positions(sized, self.inner):
                position = value.axes.index(axis)
                share = self._share(sized, axis, value.shape[position], at, strict=False)
                out[position] = normalise(share)
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
        touched = sized.from_inputs(channels)
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
            location = self.plan.location(("placement", self.number, key))
            raise InputError(error.message, location, error.remedy) from error

    def _check_axis(self, sized: SizedLayer, axis: str) -> None:
        """Refuse an axis that a layer cannot be cut on, by name and with a reason."""
        axes = sized.output.axes
        reason = f"its output has no {axis}" if axis not in axes else sized.uncut(axis)
        if reason:
            suits = ["batch", *(x for x in axes if not sized.uncut(x))]
            near = "" if axis in self.known else nearest(axis, sorted(self.known))
            remedy = f"place {sized.name} in an entry of its own, with split: "
            remedy += f"{'channel' if 'channel' in suits else suits[-1]} or none"
            raise InputError(
                f"{sized.name} cannot be split by {axis}: {reason}; allowed: {listed(suits)}",
                self.plan.location(("placement", self.number, "split")),
                f"did you mean {near}?" if near else remedy,
            )

    def _batch(self, at: dict[str, int], first: SizedLayer, chunk: int) -> Ranges:
        """A rank's examples, in equal runs where an exchange goes by scatter."""
        if "batch" not in at:
            return ((0, chunk),)
        run = chunk // self.pieces
        share = self._share(first, "batch", run, at, strict=True)
        return normalise(r for p in range(self.pieces) for r in shift(share, p * run))

    def _loss_batch(
        self, rank: int, batch: Ranges, at: dict[str, int], own: tuple[str, ...]
    ) -> Ranges:
        """The loss of each example is computed once: ranks that share a batch share it out."""
        count, index = 1, 0
        for axis, n in self.axes:
            if axis not in ("batch", *own):
                count, index = count * n, index * n + at[axis]
        if self.replicates:
            count, index = len(self.entry.ranks), self.entry.ranks.index(rank)
        if count == 1:
            return batch
        low, high = batch[0][0], batch[-1][1]
        bounds = [low + (high - low) * i // count for i in range(count + 1)]
        return normalise([(bounds[index], bounds[index + 1])])

    def _share(
        self, sized: SizedLayer, axis: str, total: int, at: dict[str, int], *, strict: bool
    ) -> Ranges:
        """What a rank has of ``total`` things; with ``strict`` they must divide exactly."""
        shares = self.entry.shares_of(axis)
        if shares is None:  # equal ones, maybe very many
            count, place = self.grid.parts(axis), at[axis]
            if strict and total % count:
                self._refuse(sized, axis, total, (1,) * count)
            return ((total * place // count, total * (place + 1) // count),)
        whole = sum(shares)
        if strict and total % whole and any(total * share % whole for share in shares):
            self._refuse(sized, axis, total, shares)
        return (_in_shares(total, shares)[at[axis]],)

    def _refuse(
        self, sized: SizedLayer, axis: str, total: int, shares: tuple[int, ...]
    ) -> NoReturn:
        count = len(shares)
        low = total // count
        even = [low + (i < total % count) for i in range(count)]
        unequal = self.entry.shares_of(axis) is not None
        key: tuple[str, ...] = ("shares",) if unequal else ("split",)
        written: object = even
        if isinstance(self.entry.shares, Shares) or len(self.axes) > 1:
            key = ("shares", axis) if unequal else ("split", axis)
            written = f"{{{axis}: {even}}}"
        remedy = f"shares: {written} in an entry of its own"
        if axis == "batch":
            each = sum(shares) * self.pieces
            remedy = f"a global_batch_size that gives each microbatch a multiple of {each}"
        elif total < count:
            remedy = f"at most {total} rank{'s' * (total > 1)} in an entry of its own"
        raise InputError(
            f"{sized.name}: {total} {AXES[axis]} do not divide over {count} ranks"
            + (f" in shares {list(shares)}" if unequal else ""),
            self.plan.location(("placement", self.number, *key)),
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


def _positions(sized: SizedLayer, axes: list[str]) -> list[str]:
    """Those of some axes along which an example has several losses, one for each position."""
    return [axis for axis in axes if axis != "channel" and axis in sized.output.axes]


def _sums(sized: SizedLayer) -> bool:
    """Whether a layer is a sum over its input channels, so that some of them give a partial sum."""
    return sized.from_inputs(((0, 1),)) is not None
