"""The words and numbers of a picture."""

from __future__ import annotations

from collections import Counter

from orchestrator.models.value import SEQUENCE_AXES
from orchestrator.observe.picture.layout import (
    Arrow,
    Band,
    Block,
    Column,
    Exchange,
    Group,
    LeftOut,
    Picture,
    Reduction,
    Row,
)
from orchestrator.plan import AXES

POOLS = {
    "pool": "max\npooling",
    "average_pool": "average\npooling",
    "global_pool": "global\naverage",
}
KINDS = {
    "linear": "dense", "sum": "added up", "embedding": "table", "position_embedding": "added",
    **{kind: text.replace("\n", " ") for kind, text in POOLS.items()},
}  # fmt: skip


def short_bytes(count: float) -> str:
    """Three figures and a decimal prefix: ``11.1 MB``."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if power == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {units[power]}"


def block_text(block: Block, column: Column, picture: Picture) -> str:
    """Height x width x channels, in the paper's order, tokens x channels, or features; which rows
    of the whole; images, if they change."""
    lines = []
    if block.shape != (1,) and column.drawn not in ("plus", "times"):
        in_order = block.axes == SEQUENCE_AXES
        channels, *sides = block.shape
        lines.append("×".join(map(str, block.shape if in_order else (*sides, channels))))
    if not column.joins:
        lines += [f"{band_name(band)} {band.start}:{band.stop}" for band in block.bands]
    if block.images:
        lines.append(f"{block.images} {picture.examples}")
    if block.says_whole:
        lines.append("whole on each")
    return "\n".join(lines)


def band_name(band: Band) -> str:
    """What a band is some of: rows, columns, tokens; of an axis of a user's own, its name."""
    return AXES.get(band.axis, band.axis)


def column_name(picture: Picture, column: int) -> str:
    """A column's name; signs have none, but where ranks talk before them."""
    found = picture.columns[column]
    if found.drawn in ("plus", "times") and all(e.column != column for e in picture.exchanges):
        return ""
    return found.label


def column_text(column: Column) -> str:
    """What a column computes, in one line below its name."""
    if column.kernel:
        stride = f", stride {column.stride}" if column.stride > 1 else ""
        return f"{column.kernel}×{column.kernel}{stride}"
    return KINDS.get(column.kind, "")


def group_text(group: Group) -> str:
    """A block's name, and which ones do the same."""
    if not group.others:
        return group.name
    return f"{group.name} … {group.others[-1]}: ×{len(group.others) + 1}"


def left_out_text(gap: LeftOut) -> str:
    """What is left out in the middle."""
    return f"{gap.columns} layers\nleft out:\n{gap.first}\nto {gap.last}"


def row_text(row: Row, picture: Picture) -> str:
    """A rank, how many do the same, and its share of the batch."""
    lines = [f"rank {row.rank}"]
    if row.copies > 1:
        lines.append(f"and {row.copies - 1} alike")
    if row.images < picture.batch:
        lines.append(f"{row.images} of {picture.batch}\n{picture.examples}")
    return "\n".join(lines)


def alike_text(row: Row) -> str:
    """How many ranks are left out below a row."""
    return f"⋮  {row.alike_below} more alike"


def arrow_text(arrow: Arrow) -> str:
    """Bytes forward; and those back, where they are not as many."""
    forward = short_bytes(arrow.forward)
    if not arrow.backward:
        return f"{forward}, none back"
    if not arrow.forward:
        return f"back {short_bytes(arrow.backward)}"
    if arrow.backward == arrow.forward:
        return forward
    return f"{forward}, back {short_bytes(arrow.backward)}"


def is_labelled_on_arrow(exchange: Exchange) -> bool:
    """Whether every arrow has its own label; else one stands for all."""
    if len(exchange.arrows) < len(exchange.sizes):
        return False
    return max(Counter(arrow.space for arrow in exchange.arrows).values()) <= 2


def exchange_text(exchange: Exchange) -> str:
    """How many edges, and how much on each."""
    low, high = short_bytes(exchange.sizes[0]), short_bytes(exchange.sizes[-1])
    arrows = exchange.arrows
    back = "back " if arrows and not any(arrow.forward for arrow in arrows) else ""
    return f"{back}{len(exchange.sizes)} × {low}" + (f" to {high}" if low != high else "")


def reduction_text(reduction: Reduction) -> str:
    """Who sums which gradients, and what each sends for it."""
    names = reduction.layers
    layers = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
    return f"gradients of {layers}\nsummed over {reduction.ranks} ranks\n" + (
        f"each sends {short_bytes(reduction.sent)}"
    )
