"""The calibration of a cluster file as pydantic models: what was measured, row by row."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from orchestrator.plan.problem import Problem, found, refusal
from orchestrator.simulate.figure import Part

Name = Annotated[str, Field(min_length=1, max_length=200)]
SHORTEST = 1e-12  # seconds that anything can have been measured with
Seconds = Annotated[float, Field(ge=SHORTEST, le=1e9)]
Spread = Annotated[float, Field(ge=0, le=1e9)]
Alone = Annotated[float, Field(ge=0, le=1e9)]
Bytes = Annotated[int, Field(ge=1, le=2**60)]
Number = Annotated[int, Field(ge=1, le=2**40)]


def _read_date(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return value
    message = f"{found(value)}; allowed: a date such as 2026-11-21"
    raise refusal([Problem((), message, "write it as year-month-day")])


class LayerTimeFile(Part):
    """A row of measured layer times."""

    kind: Name
    shape: Name
    dtype: Literal["float32", "float64", "bfloat16"]
    batch: Number
    direction: Literal["forward", "backward", "backward_input", "backward_weight"] = Field(
        alias="pass", description="Which pass.", examples=["forward"]
    )
    seconds: Seconds
    alone: Alone = 0.0
    spread: Spread = 0.0


class BytesTimeFile(Part):
    """A row of measured updates or copies."""

    bytes: Bytes
    seconds: Seconds
    alone: Alone = 0.0
    spread: Spread = 0.0


class LinkTimeFile(Part):
    """A row of measured messages: means, while both ends compute."""

    level: Name
    bytes: Bytes
    seconds: Seconds
    spread: Spread = 0.0


class CollectiveTimeFile(Part):
    """A row of measured collectives."""

    kind: Literal["ALL_REDUCE", "REDUCE_SCATTER", "ALL_GATHER"]
    ranks: Annotated[int, Field(ge=2, le=2**40)]
    bytes: Bytes
    seconds: Seconds
    spread: Spread = 0.0


class CalibrationFile(Part):
    """Times measured on this hardware; they go before peaks and efficiencies."""

    date: Annotated[
        str, PlainValidator(_read_date), WithJsonSchema({"type": "string", "format": "date"})
    ] = Field(description="When.", examples=["2026-11-21"])
    hardware: Name = Field(description="What it was measured on.", examples=["2-core Xeon"])
    model: Name = Field(description="The model whose layers were measured.", examples=["lenet5"])
    versions: dict[str, str] = Field(
        description="Versions of the software, in quotes.", examples=[{"torch": "2.13.0"}]
    )
    threads: Annotated[int, Field(ge=0, le=2**40)] = Field(
        default=0, description="Threads a rank computed with; 0 for a GPU.", examples=[1]
    )
    neighbours: Annotated[int, Field(ge=0, le=2**40)] = Field(
        default=0,
        description="Ranks, of consecutive numbers, that disturb each other; 0: those of a node.",
        examples=[2],
    )
    compute_slowdown: Annotated[float, Field(ge=0, le=0.99)] = Field(
        default=0.0,
        description="Fraction of its speed that computation loses under a transfer.",
        examples=[0.1],
    )
    transfer_stretch: Annotated[float, Field(ge=1, le=1e6)] = Field(
        default=1.0,
        description="Times as long as a transfer takes while its ranks compute.",
        examples=[1.5],
    )
    post_s: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0,
        description="Seconds that a rank's computation waits for each transfer that it posts.",
        examples=[2e-4],
    )
    jitter: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Relative standard deviation of a rank's computation about other ranks'.",
        examples=[0.02],
    )
    load_s: dict[str, Seconds] = Field(
        default_factory=dict,
        description="Seconds of loading one image, by what run --data names.",
        examples=[{"digits": 2.5e-4}],
    )
    layers: tuple[LayerTimeFile, ...] = Field(default=(), strict=False)
    optimizer: tuple[BytesTimeFile, ...] = Field(default=(), strict=False)
    copies: tuple[BytesTimeFile, ...] = Field(default=(), strict=False)
    links: tuple[LinkTimeFile, ...] = Field(default=(), strict=False)
    collectives: tuple[CollectiveTimeFile, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _check(self) -> CalibrationFile:
        problems = []
        tables: dict[str, tuple[Part, ...]] = {
            "layers": self.layers, "optimizer": self.optimizer, "copies": self.copies,
            "links": self.links, "collectives": self.collectives,
        }  # fmt: skip
        for name, rows in tables.items():
            seen: set[tuple[object, ...]] = set()
            for i, row in enumerate(rows):
                measured = row.model_dump(exclude={"seconds", "alone", "spread"})
                key = tuple(measured.values())
                if key in seen:
                    message = f"found a second row of {', '.join(map(str, key))}; allowed: one"
                    problems.append(Problem((name, i), message, "keep one of the two"))
                seen.add(key)
                alone = getattr(row, "alone", 0.0)
                if 0 < alone < SHORTEST:
                    message = f"found {alone:g}; allowed: 0 (not measured), {SHORTEST:g} or more"
                    problems.append(Problem((name, i, "alone"), message, "leave it out"))
        if problems:
            raise refusal(problems)
        return self
