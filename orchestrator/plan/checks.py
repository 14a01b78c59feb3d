"""What must hold between a plan's values, as far as it can be told without the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.plan.grid import AXES, NONE, Grid, unknown_axis, unknown_split
from orchestrator.plan.layers import ends
from orchestrator.plan.problem import Problem, found, listed, nearest
from orchestrator.plan.shares import Shares

if TYPE_CHECKING:
    from orchestrator.plan.schema import Entry, ModelChoice, Plan, Training


def of_model(model: ModelChoice) -> list[Problem]:
    """Exactly one way of saying which network."""
    allowed = "allowed: either name, or file and function"
    if model.name is not None and (model.file is not None or model.function is not None):
        message = f"found name beside file or function; {allowed}"
        return [Problem((), message, "remove name for a model of your own, else the other two")]
    if model.name is None and model.file is None and model.function is None:
        return [Problem((), f"found neither; {allowed}", "add name: alexnet2012")]
    if model.name is None and model.function is None:
        return [Problem((), f"found file alone; {allowed}", "add function: build")]
    if model.name is None and model.file is None:
        return [Problem((), f"found function alone; {allowed}", "add file: my_net.py")]
    return []


def of_training(training: Training) -> list[Problem]:
    """Momentum and weight decay are said once, and of an optimizer that has them."""
    choice = training.optimizer
    if choice is None:
        return []
    problems = []
    for key in ("momentum", "weight_decay"):
        if getattr(training, key) is None:
            continue
        if key not in choice.kind.options():
            message = f"found {key} beside optimizer {choice.name}, which has none; "
            message += f"allowed: {listed(choice.kind.options())}, under optimizer"
            problems.append(Problem((key,), message, f"remove {key}"))
        elif key in dict(choice.options):
            message = f"found {key} here and under optimizer; allowed: one of them"
            problems.append(Problem((key,), message, "keep the optimizer's"))
    return problems


def of_entry(entry: Entry) -> list[Problem]:
    """Split, ranks, shares and exchange fit one another."""
    problems = []
    n_ranks = len(entry.ranks)
    grid = entry.grid
    if entry.split != NONE and grid.size != n_ranks:
        parts = " x ".join(f"{axis} {count}" for axis, count in grid.axes)
        message = f"found a grid of {grid.size} ({parts}) over {n_ranks} ranks; allowed: one rank "
        message += "for each cell of the grid"
        remedy = f"change the grid, or give ranks: 0..{grid.size - 1}"
        problems.append(Problem(("split",), message, remedy))
    if entry.shares is not None:
        problems += _of_shares(entry, entry.shares)
    if entry.exchange != "gather" and not grid.has("channel"):
        message = f"found '{entry.exchange}' on an entry that is not split by channel; "
        message += "allowed: gather, or split: channel after an entry with split: batch"
        problems.append(Problem(("exchange",), message, "remove exchange, or write split: channel"))
    return problems


def _of_shares(entry: Entry, shares: tuple[int, ...] | Shares) -> list[Problem]:
    axes = dict(entry.grid.axes)
    if not axes:
        message = f"found shares beside none; allowed: beside {listed(AXES)}, or a grid of these"
        return [Problem(("shares",), message, "remove shares")]
    if isinstance(shares, Shares):
        problems = []
        for axis, parts in shares.axes:
            path = ("shares", axis)
            if axis not in axes:
                message = f"found shares along {axis}, which the split does not cut; "
                message += f"allowed: {listed(axes)}"
                near = nearest(axis, axes)
                remedy = f"did you mean {near}?" if near else f"remove {axis}, or add it to split"
                problems.append(Problem(path, message, remedy))
            elif len(parts) != axes[axis]:
                message = f"found {len(parts)} shares for {axes[axis]} parts along {axis}; "
                message += "allowed: one for each part"
                remedy = f"write {axis}: {_unequal(axes[axis])}"
                problems.append(Problem(path, message, remedy))
        return problems
    if len(axes) > 1:
        axis, count = max(axes.items(), key=lambda item: item[1])
        message = "found one list of shares beside a grid; allowed: a list for each axis"
        return [Problem(("shares",), message, f"write shares: {{{axis}: {_unequal(count)}}}")]
    n_ranks = len(entry.ranks)
    if len(shares) != n_ranks:
        message = f"found {len(shares)} shares for {n_ranks} ranks; allowed: one for each rank"
        return [Problem(("shares",), message, f"write shares: {_unequal(n_ranks)}")]
    return []


def _unequal(count: int) -> str:
    """An example of shares in so many parts."""
    return f"[{', '.join(['2', *['1'] * min(count - 1, 7)])}]"


def of_plan(plan: Plan) -> list[Problem]:
    """Ranks, layers, batch and exchanges over all entries."""
    if not plan.placement:
        message = "found an empty list; allowed: at least one entry"
        remedy = "add - {layers: conv1..fc8, ranks: [0], split: none}"
        return [Problem(("placement",), message, remedy)]
    return [
        *_of_axes(plan),
        *_of_ranks(plan.placement),
        *_of_layers(plan.placement),
        *_of_exchanges(plan.placement),
        *_of_batch(plan),
    ]


def _of_axes(plan: Plan) -> list[Problem]:
    """Layers of a built-in model have the axes that are known here; those of a file's, any."""
    if plan.model.file is not None:
        return []
    problems = []
    for i, entry in enumerate(plan.placement):
        unknown = [axis for axis, _ in entry.grid.axes if axis not in AXES]
        grid = isinstance(entry.split, Grid)
        found_here = map(unknown_axis if grid else unknown_split, unknown)
        problems += [problem.under(("placement", i, "split")) for problem in found_here]
    return problems


def _of_ranks(placement: tuple[Entry, ...]) -> list[Problem]:
    used = {rank for entry in placement for rank in entry.ranks}
    highest = max(used)
    if len(used) == highest + 1:
        return []
    unused: list[int] = []
    candidate = 0
    while len(unused) < 4:  # a rank such as 900000 may leave very many
        if candidate not in used:
            unused.append(candidate)
        candidate += 1
        if candidate > highest:
            break
    n_unused = highest + 1 - len(used)
    names = listed(map(str, unused)) if n_unused <= len(unused) else f"{unused[0]} and others"
    where = next(i for i, entry in enumerate(placement) if highest in entry.ranks)
    is_unused = "is unused" if n_unused == 1 else "are unused"
    message = f"found rank {highest}, but rank {names} {is_unused}; "
    message += "allowed: every rank from 0 up to the highest"
    remedy = f"write rank {unused[0]} in place of {highest}, or give rank {unused[0]} some layers"
    return [Problem(("placement", where, "ranks"), message, remedy)]


def _of_layers(placement: tuple[Entry, ...]) -> list[Problem]:
    """A name that begins or ends two ranges is certainly placed twice."""
    problems = []
    seen: dict[str, int] = {}
    for i, entry in enumerate(placement):
        for position, text in enumerate(entry.layer_ranges):
            inside = () if isinstance(entry.layers, str) else (position,)
            for name in dict.fromkeys(ends(text)):
                if name in seen:
                    where = f"here and in placement[{seen[name]}]"
                    where = "twice in one list" if seen[name] == i else where
                    message = f"found layer {name} {where}; allowed: once"
                    remedy = "end one range a layer earlier, or begin the other a layer later"
                    if inside and text == name:
                        remedy = f"remove {name} from this list"
                    problems.append(Problem(("placement", i, "layers", *inside), message, remedy))
                seen[name] = i
    return problems


def _of_exchanges(placement: tuple[Entry, ...]) -> list[Problem]:
    problems = []
    for i, entry in enumerate(placement):
        follows_batch = i > 0 and placement[i - 1].grid.has("batch")
        if entry.exchange != "gather" and not follows_batch:
            before = "no entry" if i == 0 else "an entry that is not split by batch"
            message = f"found '{entry.exchange}' after {before}; "
            message += "allowed: after an entry with split: batch"
            remedy = "remove exchange, or split the entry before by batch"
            problems.append(Problem(("placement", i, "exchange"), message, remedy))
    return problems


def _of_batch(plan: Plan) -> list[Problem]:
    parts = plan.replicas * plan.n_microbatches
    batch = plan.global_batch_size
    if batch % parts:
        message = f"{found(batch)}; allowed: a multiple of replicas x n_microbatches = "
        message += f"{plan.replicas} x {plan.n_microbatches} = {parts}"
        return [
            Problem(
                ("global_batch_size",),
                message,
                f"{_multiples(batch, parts)}, or change the other two",
            )
        ]
    problems = []
    size = plan.microbatch_size
    for i, entry in enumerate(plan.placement):
        if entry.shares_of("batch") is None and size % entry.grid.parts("batch"):
            n = entry.grid.parts("batch")
            message = f"found {n} batch parts of a microbatch of {size} images (global_batch_size "
            message += f"/ (replicas x n_microbatches)); allowed: parts that divide {size}"
            remedy = "for global_batch_size, " + _multiples(batch, parts * n)
            problems.append(Problem(("placement", i, "split"), message, remedy))
    return problems


def _multiples(batch: int, parts: int) -> str:
    below = batch // parts * parts
    return f"write {listed(str(n) for n in (below, below + parts) if n)}"
