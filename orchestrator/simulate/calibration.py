"""What was measured on a machine, as the cost model reads it and as ``calibrate`` writes it.

In a cluster file::

    calibration:
      date: 2026-11-21
      hardware: "2 x 2.1 GHz Xeon"
      model: alexnet2012
      versions: {orchestrator: 0.1.0, torch: 2.13.0}
      threads: 1
      layers:       # median seconds of one pass over so many images
        - {kind: conv, shape: 3x224x224 > 48x55x55 kernel 11 stride 4, dtype: float32,
           batch: 32, pass: forward, seconds: 0.0123, spread: 0.02}
      optimizer:    # one update of so many bytes of weights
        - {bytes: 4194304, seconds: 0.0011}
      copies:       # of so many bytes of memory
        - {bytes: 4194304, seconds: 0.0005}
      links:        # one message, on the mean, between two devices whose path ends at this level
        - {level: host, bytes: 65536, seconds: 0.00042}
      collectives:
        - {kind: ALL_REDUCE, ranks: 2, bytes: 4194304, seconds: 0.012}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from orchestrator.models.box import Shape
from orchestrator.models.layer_costs import Pass
from orchestrator.models.model_file import is_of_user
from orchestrator.models.sized import LayerPart


@dataclass(frozen=True)
class LayerTime:
    """One pass of one layer part over ``batch`` images.

    Args:
        kind: conv, linear, relu, ...
        shape: :func:`shape_key` of the part.
        batch: images at once.
        direction: which pass (``pass`` in the file).
        seconds: median over the repeats, while all ranks of the machine do the same.
        alone: the same while the others rest; 0: not measured, as above.
        spread: half the distance between the quartiles, as a fraction of the median.
    """

    kind: str
    shape: str
    dtype: str
    batch: int
    direction: Pass
    seconds: float
    alone: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class BytesTime:
    """The update of ``bytes`` of weights, or a copy of as many; ``alone`` as of a layer."""

    bytes: int
    seconds: float
    alone: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class LinkTime:
    """One message of ``bytes`` between two devices; ``level``: the outermost on its path.

    ``seconds`` is the mean, while both ends compute: now and then a message waits for a core, and
    what a step waits for is the sum of many.
    """

    level: str
    bytes: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class CollectiveTime:
    """One collective (``ALL_REDUCE``, ...) of a buffer of ``bytes`` over so many ranks."""

    kind: str
    ranks: int
    bytes: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """All that was measured in one go, and on what.

    Args:
        threads: of each rank on a processor.
        neighbours: how many ranks, of consecutive numbers, disturb each other; 0: those of a node.
        compute_slowdown: fraction of its speed that computation loses under a transfer.
        transfer_stretch: times as long as a transfer takes while its ranks compute.
        post_s: seconds that a rank's computation waits for each transfer that it posts.
        jitter: relative standard deviation of a rank's computation about other ranks'.
        load_s: seconds of loading one image, by what ``run --data`` names.
    """

    date: str
    hardware: str
    model: str
    versions: Mapping[str, str]
    threads: int = 0
    neighbours: int = 0
    compute_slowdown: float = 0.0
    transfer_stretch: float = 1.0
    post_s: float = 0.0
    jitter: float = 0.0
    load_s: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[LayerTime, ...] = ()
    optimizer: tuple[BytesTime, ...] = ()
    copies: tuple[BytesTime, ...] = ()
    links: tuple[LinkTime, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    _by_shape: dict[tuple[str, str, str, str], tuple[LayerTime, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        rows: dict[tuple[str, str, str, str], list[LayerTime]] = {}
        for row in self.layers:
            rows.setdefault((row.kind, row.shape, row.dtype, row.direction), []).append(row)
        for key, found in rows.items():
            self._by_shape[key] = tuple(sorted(found, key=lambda r: r.batch))

    def rows(self, kind: str, shape: str, dtype: str, direction: str) -> tuple[LayerTime, ...]:
        """The rows of one layer part and pass, batch ascending; () if none was measured."""
        return self._by_shape.get((kind, shape, dtype, direction), ())


def shape_key(part: LayerPart) -> str:
    """What a layer part's time depends on besides the batch, in words.

    ``48x27x27 > 128x27x27 kernel 5 stride 1`` for one column of conv2. Parts with equal keys and
    kinds do the same work.
    """
    sized = part.sized
    before = " + ".join(map(_times, part.input_shapes))
    layer = sized.layer
    words = [before, ">", _times(part.output_shape), part.signature()]
    if is_of_user(type(layer)):  # which of its fields change its time is not known
        names = [one.name for one in fields(layer) if one.name not in ("name", "inputs")]
        words += [_word(f"{name}={getattr(layer, name)}") for name in names]
    return " ".join(filter(None, words))


def _word(text: str) -> str:
    """What may stand in a file between quotes, without a blank."""
    return re.sub(r"[^\w=.,+()-]+", "_", text)


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
