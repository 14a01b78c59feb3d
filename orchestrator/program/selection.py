"""Which layers a plan means: ``conv1..pool2``, ``fc8``, ``blocks.0..11``, ``all``, or a list."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.errors import InputError
from orchestrator.models.model import Model

_BLOCKS = re.compile(r"(?P<stem>.*\.)(?P<first>\d+)\.\.(?P<last>\d+)")


def selected(model: Model, layers: str | Sequence[str], location: str) -> tuple[int, ...]:
    """Positions of the named layers in the model's order, the loss never among them.

    ``a..b`` are all layers from a to b in the model's order; ``blocks.0..11`` and ``blocks.3`` all
    layers of these blocks, whose names begin with ``blocks.3.``.

    Raises:
        InputError: a name that is not the model's, or a range that runs backwards.
    """
    texts = [layers] if isinstance(layers, str) else layers
    return tuple(sorted({i for text in texts for i in _range(model, text, location)}))


def _range(model: Model, text: str, location: str) -> range:
    names = [layer.name for layer in model.layers[:-1]]
    if text == "all" and "all" not in names:
        return range(len(names))
    blocks = _BLOCKS.fullmatch(text)
    if blocks:
        first, last = blocks["stem"] + blocks["first"], blocks["stem"] + blocks["last"]
    else:
        first, _, last = text.partition("..")
    start = _position(model, names, first, location)[0]
    stop = _position(model, names, last or first, location)[1]
    if start >= stop:
        raise InputError(f"{text!r} runs backwards: {last} comes before {first}", location)
    return range(start, stop)


def _position(model: Model, names: list[str], name: str, location: str) -> tuple[int, int]:
    """First position of a layer or block, and the one behind its last."""
    if name in names:
        return names.index(name), names.index(name) + 1
    inside = [i for i, other in enumerate(names) if other.startswith(f"{name}.")]
    if not inside:
        shown = " ".join(names) if len(names) <= 60 else f"{' '.join(names[:60])} ..."
        raise InputError(f"{model.name} has no layer {name!r}; its layers: {shown}", location)
    return inside[0], inside[-1] + 1
