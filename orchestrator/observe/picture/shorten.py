"""A long model made short: blocks of layers under one heading, alike ones drawn once, the middle of
what is still too long left out.

A block is what names say: ``blocks.3.conv1`` and ``blocks.3.sum`` are of the block ``blocks.3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from typing import TypeVar

from orchestrator.observe.picture.layout import Column, Exchange, Group, LeftOut, Picture, Reading

Way = TypeVar("Way", Reading, Exchange)

LONG = 20  # levels, from which alike blocks are drawn once
MOST = 40  # levels that are drawn
_BLOCK = re.compile(r"(?P<block>(?:.*\.)?\d+)\.[^.].*")


def shorten(picture: Picture) -> Picture:
    """The picture with its blocks under headings, and at most so many levels."""
    picture = _grouped(picture)
    if _levels(picture) > LONG:
        picture = _folded(picture)
    return _cut(picture) if _levels(picture) > MOST else picture


def _levels(picture: Picture) -> int:
    return len({column.level for column in picture.columns})


def _grouped(picture: Picture) -> Picture:
    """Columns that follow each other and are of one block, if they have their levels to
    themselves."""
    columns = list(picture.columns)
    groups = []
    for name, run in groupby(range(len(columns)), key=lambda i: _block(columns[i].layer)):
        members = list(run)
        first, last = members[0], members[-1]
        levels = {columns[i].level for i in members}
        others = {c.level for i, c in enumerate(columns) if not first <= i <= last}
        if name and not levels & others:
            groups.append(Group(name, first, last, ()))
            for i in members:
                columns[i] = replace(columns[i], group=name)
    return replace(picture, columns=tuple(columns), groups=tuple(groups))


def _block(layer: str) -> str:
    # the innermost number: stages.1.blocks.0.conv is of stages.1.blocks.0
    match = _BLOCK.fullmatch(layer)
    return match["block"] if match else ""


# -- alike blocks ---------------------------------------------------------------------------------


def _folded(picture: Picture) -> Picture:
    """Of blocks that follow each other and do the same, the first."""
    does = {group: _does(picture, group) for group in picture.groups}
    stand_in: dict[int, int] = {}  # by column that is not drawn, the one drawn for it
    groups = []
    for run in _runs(picture.groups):
        for _, same in groupby(run, key=does.__getitem__):
            first, *others = same
            if others and _is_chain(picture, [first, *others]):
                for other in others:
                    for i in range(other.first, other.last + 1):
                        stand_in[i] = i - other.first + first.first
                groups.append(first._replace(others=tuple(other.name for other in others)))
            else:
                groups += [first, *others]
    return _without(replace(picture, groups=tuple(groups)), stand_in)


def _runs(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Groups that follow each other without a column between."""
    run: list[Group] = []
    for group in groups:
        if run and run[-1].last + 1 != group.first:
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def _does(picture: Picture, group: Group) -> tuple[object, ...]:
    """What its columns are and read, and what ranks hold and send; equal for alike blocks."""
    level = picture.columns[group.first].level

    def inside(column: int) -> bool:
        return group.first <= column <= group.last

    return (
        tuple(
            replace(c, layer=c.label, group="", level=c.level - level, region=0)
            for c in picture.columns[group.first : group.last + 1]
        ),
        tuple(
            replace(b, column=b.column - group.first, says_whole=False)
            for b in sorted(picture.blocks, key=lambda b: (b.column, b.rows))
            if inside(b.column)
        ),
        tuple(_shifted(r, group.first) for r in picture.readings if inside(r.column)),
        tuple(_shifted(e, group.first) for e in picture.exchanges if inside(e.column)),
    )


def _shifted(way: Way, by: int) -> Way:
    return replace(way, source=way.source - by, column=way.column - by)


def _is_chain(picture: Picture, run: list[Group]) -> bool:
    """Whether of every block but the last only the next one reads."""
    ways: list[Reading | Exchange] = [*picture.readings, *picture.exchanges]
    return all(
        way.column <= after.last
        for before, after in pairwise(run)
        for way in ways
        if before.first <= way.source <= before.last
    )


# -- leaving out ----------------------------------------------------------------------------------


def _cut(picture: Picture) -> Picture:
    """The first and the last levels."""
    levels = sorted({column.level for column in picture.columns})
    middle = set(levels[MOST // 2 : len(levels) - (MOST - MOST // 2)])
    dropped = [i for i, column in enumerate(picture.columns) if column.level in middle]
    gap = LeftOut(
        MOST // 2,
        len(dropped),
        picture.columns[dropped[0]].layer,
        picture.columns[dropped[-1]].layer,
    )
    return replace(_without(picture, dict.fromkeys(dropped, -1)), left_out=gap)


def _without(picture: Picture, stand_in: dict[int, int]) -> Picture:
    """A picture without some columns; where something else reads one, it reads what stands in."""
    kept = [i for i in range(len(picture.columns)) if i not in stand_in]
    new = {old: i for i, old in enumerate(kept)} | {-1: -1}
    levels = sorted({picture.columns[i].level for i in kept})
    level = {old: i for i, old in enumerate(levels)}

    def moved(ways: Iterable[Way]) -> tuple[Way, ...]:
        found = []
        for way in ways:
            source = new[stand_in.get(way.source, way.source)]
            if way.column not in stand_in and source >= 0:
                found.append(replace(way, source=source, column=new[way.column]))
        return tuple(found)

    def column(i: int) -> Column:
        return replace(picture.columns[i], level=level[picture.columns[i].level])

    def group(old: Group) -> Group | None:
        left = [new[i] for i in range(old.first, old.last + 1) if i in new]
        return old._replace(first=left[0], last=left[-1]) if left else None

    return replace(
        picture,
        columns=tuple(column(i) for i in kept),
        groups=tuple(filter(None, map(group, picture.groups))),
        blocks=tuple(
            replace(b, column=new[b.column]) for b in picture.blocks if b.column not in stand_in
        ),
        readings=moved(picture.readings),
        exchanges=moved(picture.exchanges),
    )
