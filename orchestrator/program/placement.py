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
from typing import NamedTuple, NoReturn

from orchestrator.errors import InputError
from orchestrator.models.combine import Sum
from orchestrator.models.model import Model
from orchestrator.models.sized import SizedLayer
from orchestrator.models.value import INPUT, LABELS
from orchestrator.plan import AXES, Plan
from orchestrator.program.cutting import Cutter, Part
from orchestrator.program.selection import entry_layers, layers_text, selected
from orchestrator.schedules import SCHEDULES

FROM_INPUT, FROM_LABELS = -1, -2  # sources that are data, not layers


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
        layers: with the halves, the ``Sum`` layers and the loss, each behind those that it reads.
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
    microbatch = plan.microbatch_size
    chunks = _chunks(plan, model, entry_of, order, updates, stage_of)
    strided = any(entry.exchange == "scatter" for entry in plan.placement)
    known = frozenset(AXES).union(*[layer.output.axes for layer in model.layers])
    placed: list[PlacedLayer] = []
    where = {INPUT: FROM_INPUT, LABELS: FROM_LABELS}
    cutters: dict[tuple[int, int], Cutter] = {}
    for i, chunk in zip(order, chunks, strict=True):
        sized = model.layers[i]
        number = entry_of[i]
        if (number, chunk) not in cutters:
            pieces = chunk // chunks[-1] if strided else 1
            cutters[number, chunk] = Cutter(plan, number, sized, chunk, pieces, known)
        cutter = cutters[number, chunk]
        # the loss goes with the layer that gives the scores
        update = updates.get(model.layers[min(i, len(model.layers) - 2)].name, 0)
        common = (stage_of[number], chunk, update)
        statistics = cutter.statistics(sized)
        if statistics:
            gather, parts = cutter.gathering(sized, statistics)
            _check_half(plan, model, number, gather)
            sources = tuple([where[source] for source in gather.sources])
            where[gather.name] = len(placed)
            placed.append(PlacedLayer(gather, sources, *common, False, False, parts))
            sized = cutter.applying(sized, gather, statistics)
        partial = cutter.is_partial(sized)
        sources = tuple([where[source] for source in sized.sources])
        parts = cutter.parts(sized)
        where[sized.name] = len(placed)
        # the loss of an example is computed once, by one of the ranks that hold its scores
        replicated = cutter.replicates and not sized.layer.is_loss
        placed.append(PlacedLayer(sized, sources, *common, partial, replicated, parts))
        if partial:
            total = SizedLayer(
                Sum(name=f"{sized.name}.sum"), (sized.output,), sized.output, (sized.name,),
                half_of=sized.name,
            )  # fmt: skip
            _check_half(plan, model, number, total)
            sources, where[sized.name] = (where[sized.name],), len(placed)
            parts = cutter.parts(total)
            placed.append(PlacedLayer(total, sources, *common, False, False, parts))
    _check_busy(plan, placed)
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
    for number in range(len(plan.placement)):
        wanted = entry_layers(plan, model, number)
        twice = [i for i in wanted if i in entry_of]
        if twice:
            _refuse_twice(plan, model, entry_of, number, wanted, twice[0])
        entry_of |= dict.fromkeys(wanted, number)
        order += wanted
    loss = len(model.layers) - 1
    missing = [i for i in range(loss) if i not in entry_of]
    if missing:
        _refuse_missing(plan, model, entry_of, missing)
    _check_order(plan, model, entry_of, order)
    entry_of[loss] = entry_of[loss - 1]
    return entry_of, [*order, loss]


def _check_busy(plan: Plan, placed: list[PlacedLayer]) -> None:
    """Every rank computes something: more parts than rows or tokens leave some with nothing."""
    busy = {rank for layer in placed for rank in layer.parts}
    for number, entry in enumerate(plan.placement):
        idle = [rank for rank in entry.ranks if rank not in busy]
        if idle:
            raise InputError(
                f"nothing is left for rank {idle[0]}: the layers are cut into more parts than they "
                "have values",
                plan.location(("placement", number, "ranks")),
                f"fewer ranks, such as {len(entry.ranks) - len(idle)}"
                + (", or shares that are less unequal" if entry.shares else ""),
            )


def _check_half(plan: Plan, model: Model, number: int, half: SizedLayer) -> None:
    """No layer of the model has the name of a half that the compiler places."""
    if half.name in model.index:
        raise InputError(
            f"the split of {half.half_of} takes it in two halves, of which one is called "
            f"{half.name}; model {model.name} has a layer of this name",
            plan.location(("placement", number, "split")),
            f"another name for the layer {half.name}",
        )


def _refuse_twice(
    plan: Plan,
    model: Model,
    entry_of: dict[int, int],
    number: int,
    wanted: tuple[int, ...],
    twice: int,
) -> NoReturn:
    free = [i for i in range(len(model.layers) - 1) if i not in entry_of]
    left = [i for i in wanted if i in free] or free
    raise InputError(
        f"{', '.join(map(repr, plan.placement[number].layer_ranges))} names "
        f"{model.layers[twice].name}, which placement[{entry_of[twice]}] has already",
        plan.location(("placement", number, "layers")),
        f"write layers: {layers_text(model, left)}" if left
        else "every layer has its ranks, remove this entry",
    )  # fmt: skip


def _refuse_missing(
    plan: Plan, model: Model, entry_of: dict[int, int], missing: list[int]
) -> NoReturn:
    """All layers that no entry names; the remedy is an entry for the first of them in a row."""
    run = [i for i in missing if i - missing[0] == missing.index(i)]
    names = {model.layers[i].name for i in run}
    readers = [n for i, n in entry_of.items() if names & set(model.layers[i].sources)]
    named = layers_text(model, run)
    where = f"before placement[{min(readers)}]" if readers else "as the last entry"
    remedy = f"add - {{layers: {named}, ranks: [0], split: none}} {where}"
    if readers and min(readers) in _entries_read(model, entry_of, run):
        remedy = f"add {named} to the layers of placement[{min(readers)}]"
    raise InputError(
        f"layers without a rank: {layers_text(model, missing).strip('[]')}",
        plan.location(("placement",)),
        remedy,
    )


def _check_order(plan: Plan, model: Model, entry_of: dict[int, int], order: list[int]) -> None:
    """A layer comes behind all that it reads, entry by entry."""
    position = {model.layers[i].name: p for p, i in enumerate(order)}
    for p, i in enumerate(order):
        for source in model.layers[i].sources:
            if position.get(source, -1) > p:
                name, number = model.layers[i].name, entry_of[i]
                later = entry_of[model.index[source]]
                remedy = f"move placement[{later}] before placement[{number}]"
                others = [j for j in entry_of if entry_of[j] == later]
                if number in _entries_read(model, entry_of, others):
                    remedy = f"move {name} and what reads it into an entry behind "
                    remedy += f"placement[{later}]"
                raise InputError(
                    f"{name} reads {source}, which placement[{later}] places later",
                    plan.location(("placement", number, "layers")),
                    remedy,
                )


def _entries_read(model: Model, entry_of: dict[int, int], layers: list[int]) -> set[int]:
    """The entries of all that some layers read, directly or through others."""
    seen, unread = set[int](), set(layers)
    while unread:
        i = unread.pop()
        seen.add(i)
        unread |= {model.index[s] for s in model.layers[i].sources if s in model.index} - seen
    return {entry_of[i] for i in seen - set(layers) if i in entry_of}


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
        location = plan.location(("training", "layer_batch", text))
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
        if examples != plan.global_batch_size:
            _check_updated(plan, model, text, span)
        updates.update({model.layers[i].name: examples for i in span})
    if plan.global_batch_size in updates.values():  # once a step, as every other layer
        return {}
    return updates


def _check_updated(plan: Plan, model: Model, text: str, span: tuple[int, ...]) -> None:
    """Refuse updates within a step of layers that have no parameters, or have them in common with
    others."""
    location = plan.location(("training", "layer_batch", text))
    names = {model.layers[i].name for i in span}
    for layer in model.layers:
        for spec in layer.specs:
            owner = spec.tied_to.rpartition(".")[0]
            if owner and {layer.name, owner} & names:
                raise InputError(
                    f"{text!r} updates within a step, and {layer.name}.{spec.name} is tied to "
                    f"{spec.tied_to}, which is sent once a step",
                    location,
                    "leave layer_batch out, or the tie",
                )
    if not any(model.layers[i].parameters for i in span):
        raise InputError(
            f"{text!r} has no parameters, so there is nothing to update",
            location,
            "a range that begins at a layer with weights, or no layer_batch",
        )


def _chunks(
    plan: Plan,
    model: Model,
    entry_of: dict[int, int],
    order: list[int],
    updates: dict[str, int],
    stages: list[int],
) -> list[int]:
    """Examples at once, by layer in the order of placement, the loss included."""
    chunks: list[int] = []
    chunk = microbatch = plan.microbatch_size
    for position, i in enumerate(order[:-1]):
        number, name = entry_of[i], model.layers[i].name
        entry = plan.placement[number]
        starts = position == 0 or entry_of[order[position - 1]] != number
        if starts and entry.exchange != "gather" and number:
            turns = plan.placement[number - 1].grid.parts("batch")
            chunk = _finer(chunk, microbatch // turns, microbatch % turns, plan, number, "turns")
        if name in updates:
            size = updates[name]
            chunk = _finer(chunk, size, microbatch % size, plan, number, "layer_batch")
        chunks.append(chunk)
    if updates and all(x.name in updates for x in model.layers if x.has_weights):
        raise InputError(
            "every layer with weights is in layer_batch: that is a smaller batch for all",
            plan.location(("training", "layer_batch")),
            f"global_batch_size: {min(updates.values())}",
        )
    finer = (
        i
        for i, c in zip(order, chunks, strict=False)
        if c < microbatch or model.layers[i].name in updates
    )
    refined = next(finer, None)
    if refined is not None and stages[entry_of[refined]] != stages[-1]:
        raise InputError(
            f"{model.layers[refined].name} starts to work in turns but pipeline stages follow it",
            plan.location(("placement", entry_of[refined])),
            "let the layers that take turns be the last stage",
        )
    return [*chunks, chunks[-1]]


def _finer(now: int, wanted: int, rest: int, plan: Plan, number: int, why: str) -> int:
    size = min(now, wanted) if wanted else 0
    if not wanted or rest or now % size or wanted % size:
        raise InputError(
            f"a microbatch of {plan.microbatch_size} "
            f"examples does not divide into {why} of {wanted or 'less than one'}",
            plan.location(("placement", number)),
            "change global_batch_size",
        )
    return size
