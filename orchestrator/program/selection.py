"""Which layers a plan means: ``conv1..pool2``, ``fc8``, ``blocks.0..11``, ``all``, or a list."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan
from orchestrator.plan.layers import ends
from orchestrator.plan.problem import nearest


def entry_layers(plan: Plan, model: Model, number: int) -> tuple[int, ...]:
    """Positions of an entry's layers in the model's order; see :func:`selected`.

    Raises:
        InputError: as :func:`selected` does, and for a layer that two texts of a list name.
    """
    entry = plan.placement[number]
    text_of: dict[int, str] = {}
    for position, text in enumerate(entry.layer_ranges):
        inside = () if isinstance(entry.layers, str) else (position,)
        location = plan.location(("placement", number, "layers", *inside))
        positions = selected(model, text, location)
        for i in positions:
            if i in text_of:
                name = model.layers[i].name
                raise InputError(
                    f"{text!r} names {name}, which {text_of[i]!r} in the same list names already",
                    location,
                    f"leave {name} out of one of the two",
                )
        text_of |= dict.fromkeys(positions, text)
    return tuple(sorted(text_of))


def selected(model: Model, text: str, location: str) -> tuple[int, ...]:
    """Positions of the named layers in the model's order, the loss never among them.

    ``a..b`` are all layers from a to b in the model's order. ``blocks.3`` are the layers from the
    first to the last whose name begins with ``blocks.3.``; ``blocks.0..11`` begins with the first
    of ``blocks.0`` and ends with the last of ``blocks.11``. ``all`` is every layer, unless one is
    called so.

    Raises:
        InputError: a name that is not the model's, or a range that runs backwards.
    """
    names = [layer.name for layer in model.layers[:-1]]
    if text == "all" and "all" not in names:
        return tuple(range(len(names)))
    first, last = ends(text)
    start = _position(model, names, first, location)[0]
    stop = _position(model, names, last, location)[1]
    if start >= stop:
        raise InputError(
            f"{text!r} runs backwards: {last} comes before {first}",
            location,
            f"write {last}..{first}",
        )
    return tuple(range(start, stop))


def layers_text(model: Model, positions: Iterable[int]) -> str:
    """Layers as ``layers`` would name them: ``conv1..pool1``, or ``[a1..a3, c1]``."""
    runs: list[list[int]] = []
    for i in sorted(positions):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    names = [[model.layers[i].name for i in dict.fromkeys((run[0], run[-1]))] for run in runs]
    texts = ["..".join(pair) for pair in names]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _position(model: Model, names: list[str], name: str, location: str) -> tuple[int, int]:
    """First position of a layer or block, and the one behind its last."""
    if name in names:
        return names.index(name), names.index(name) + 1
    inside = [i for i, other in enumerate(names) if other.startswith(f"{name}.")]
    if not inside:
        parts = [other.split(".") for other in names]
        blocks = [".".join(part[:depth]) for part in parts for depth in range(1, len(part))]
        near = nearest(name, [*names, *blocks])
        shown = " ".join(names) if len(names) <= 60 else f"{' '.join(names[:60])} ..."
        raise InputError(
            f"{model.name} has no layer {name!r}; its layers: {shown}",
            location,
            f"did you mean {near}?" if near else f"write one of these for {name}",
        )
    return inside[0], inside[-1] + 1
