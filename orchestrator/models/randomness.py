"""Randomness that hangs on what is drawn for: (seed, layer, step, sample, value), never a rank.

So a rank that holds half of the features draws the same mask for them as a device that holds all.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from orchestrator.models.box import Box, Shape

if TYPE_CHECKING:
    from torch import Tensor

_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """Which examples are trained on: what randomness depends on besides the layer.

    Args:
        seed: of the run.
        step: number of the training step.
        samples: (n,) int64, place of each example within the global batch of the step.
        batch: examples in that batch, on all ranks.
    """

    seed: int
    step: int
    samples: Tensor
    batch: int


def seed_of(*names: object) -> int:
    """A 32-bit seed for anything that can be named, the same on every machine."""
    digest = blake2b("/".join(map(str, names)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def keep_mask(name: str, shape: Shape, out: Box, p: float, draw: Draw, like: Tensor) -> Tensor:
    """1 with probability 1 - p, else 0; shape and dtype of ``like`` (n, sizes of ``out``).

    A hash of (seed, layer, step, sample, value), so that any part of it can be drawn alone. The
    mixing function is ``lowbias32`` (Wellons, "Prospecting for hash functions", 2018).

    Args:
        name: of the layer.
        shape: of one whole example.
    """
    import torch

    device = like.device
    rows = _mix(draw.samples.to(device) * 2 + 1 ^ seed_of(draw.seed, draw.step, name))
    values = torch.zeros(1, dtype=torch.int64, device=device)
    for ranges, size in zip(out, shape, strict=True):
        along = torch.cat([torch.arange(a, b, device=device) for a, b in ranges])
        values = (values[:, None] * size + along).flatten()
    mixed = _mix(rows[:, None] ^ (values * 0x9E3779B9 & _MASK32)[None])
    return (mixed >= int(p * 2**32)).to(like.dtype).view_as(like)


def _mix(x: Tensor) -> Tensor:
    """32-bit values in int64 tensors, well mixed."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK32
    return x ^ (x >> 16)
