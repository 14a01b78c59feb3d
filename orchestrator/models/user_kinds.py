"""Checks of what users' own kinds of layers give, and messages about what their code raises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, is_empty
from orchestrator.models.model_file import is_of_user, user_error
from orchestrator.models.parameter import Tile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from orchestrator.models.layer import Layer
    from orchestrator.models.sized import SizedLayer


@contextmanager
def asking(layer: Layer, what: str) -> Iterator[None]:
    """While a layer is asked: what a user's code raises is told, with its line.

    Args:
        what: what then failed, such as ``reads fails``.

    Raises:
        InputError: a user's code fails.
    """
    try:
        yield
    except Exception as error:
        if not is_of_user(type(layer)):
            raise
        raise user_error(error, f"layer {layer.name}: its {what}") from error


def require(holds: bool, layer: Layer, method: str, found: object, allowed: str) -> None:
    """Refuse what a method of a user's kind gives, which it need not have.

    Raises:
        InputError: naming the layer, what it gives and what is allowed.
    """
    if not holds:
        raise InputError(
            f"layer {layer.name}: its {method} gives {found!r}; allowed: {allowed}",
            remedy=f"give that, or leave {method} out of {type(layer).__name__}",
        )


def check_reads(sized: SizedLayer, found: Any) -> tuple[Box, ...]:
    """What a layer says that it reads, if that is a box of each of its inputs.

    Raises:
        InputError: it is not.
    """
    fits = isinstance(found, tuple) and len(found) == len(sized.inputs)
    for box, value in zip(found, sized.inputs, strict=True) if fits else ():
        fits = fits and isinstance(box, tuple) and len(box) == len(value.shape)
        fits = fits and all(_are_ranges(r, n) for r, n in zip(box, value.shape, strict=True))
    if not fits or all(map(is_empty, found)):
        shapes = ", ".join("x".join(map(str, value.shape)) for value in sized.inputs)
        raise InputError(
            f"layer {sized.name}: reads gives {found}; allowed: for each input ({shapes}) a box: "
            "for each of its axes ascending ranges that do not touch, such as ((0, 4), (6, 8))",
            remedy="return (out,) where it needs the same places of an input of the same shape, "
            "(sized.inputs[0].whole,) where it needs all of it",
        )
    return found  # type: ignore[no-any-return]


def check_tiles(sized: SizedLayer, found: Any) -> None:
    """Refuse what are no boxes of its parameters.

    Raises:
        InputError: naming the layer.
    """
    shapes = {spec.name: spec.shape for spec in sized.specs}
    for tile in found if isinstance(found, tuple) else (found,):
        shape = shapes.get(tile.parameter) if isinstance(tile, Tile) else None
        fits = shape is not None and isinstance(tile.box, tuple) and len(tile.box) == len(shape)
        if not fits or not all(map(_are_ranges, tile.box, shape or ())):
            told_shapes = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(
                f"layer {sized.name}: tiles gives {tile}; allowed: Tiles of its parameters "
                f"({told_shapes}), with ascending ranges such as ((0, 4), (6, 8)) for each "
                "dimension",
                remedy="leave tiles out, and say the axes of each ParameterSpec",
            )


def _are_ranges(ranges: Any, size: int) -> bool:
    pairs = ranges if isinstance(ranges, tuple) else (None,)
    if not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
        for pair in pairs
    ):
        return False
    ends = [end for pair in pairs for end in pair]
    return not ends or (ends[0] >= 0 and ends[-1] <= size and ends == sorted(set(ends)))


def check_tensor(
    y: object, shape: Shape, dtype: torch.dtype | None, what: str, remedy: str = ""
) -> None:
    """Refuse what is no tensor of this shape and dtype, None for any, from a user's code.

    Args:
        what: what gave it, such as ``layer clip: its compute gives``.
        remedy: for another shape.

    Raises:
        InputError: what was found, what is allowed.
    """
    import torch

    if isinstance(y, torch.Tensor) and y.shape == shape and dtype in (None, y.dtype):
        return
    given = f"{tuple(y.shape)} in {y.dtype}" if isinstance(y, torch.Tensor) else type(y).__name__
    allowed = f"{shape} in {dtype}" if dtype else f"a tensor of {shape}"
    if not isinstance(y, torch.Tensor):
        remedy = "return a tensor of torch"
    elif y.shape == shape:
        remedy = f"end it with .to({dtype})"
    raise InputError(f"{what} {given}; allowed: {allowed}", remedy=remedy or f"give {shape}")


def dtype_of(inputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> torch.dtype | None:
    """That of a layer's floating-point numbers; None where it has none."""
    return next((x.dtype for x in (*inputs, *parameters) if x.is_floating_point()), None)
