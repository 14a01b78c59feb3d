"""What a plan file says: the one definition behind loading, messages and the JSON Schema.

A ``Plan`` tells how a model's layers are placed on ranks. It never says what they compute.
What needs the model itself, such as whether every layer is covered, is checked later.
"""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticKnownError

from orchestrator.plan import checks, optimizer, precision
from orchestrator.plan.grid import AXES, AXIS, NONE, Grid, read_split
from orchestrator.plan.layers import LONGEST, TEXT, read_layers
from orchestrator.plan.optimizer import OptimizerChoice, read_optimizer
from orchestrator.plan.origin import Origin
from orchestrator.plan.precision import Formats, read_loss_scale, read_precision
from orchestrator.plan.problem import Path, Problem, dotted, found, refusal
from orchestrator.plan.shares import LARGEST, Shares, read_shares
from orchestrator.schedules import SCHEDULES

SCHEMA_VERSION = 1
Exchange = Literal["gather", "broadcast", "scatter"]

MOST_RANKS = 2**20
MOST_IMAGES = 2**31 - 1
_RANGE_OF_RANKS = r"^ *([0-9]{1,7}) *\.\. *([0-9]{1,7}) *$"


def _read_version(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value == SCHEMA_VERSION:
        return value
    message = f"{found(value)}; this release reads version {SCHEMA_VERSION} only"
    newer = isinstance(value, int) and value > SCHEMA_VERSION
    remedy = "install a newer orchestrator" if newer else f"write schema_version: {SCHEMA_VERSION}"
    raise refusal([Problem((), message, remedy)])


def _read_schedule(value: object) -> str:
    """A name in the registry, refused as pydantic refuses what is not one of a Literal."""
    if isinstance(value, str) and value in SCHEDULES:
        return value
    names = " or ".join(f"'{name}'" for name in SCHEDULES)
    raise PydanticKnownError("literal_error", {"expected": names})


def _read_ranks(value: object) -> object:
    if not isinstance(value, str):
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            message = f"{found(value)}; allowed: a list, or a range such as 0..7"
            raise refusal([Problem((), message, f"write ranks: [{value}]")])
        return value
    match = re.match(_RANGE_OF_RANKS, value)
    if match is None:
        message = f"{found(value)}; allowed: a list such as [0, 1], or a range such as 0..7"
        raise refusal([Problem((), message, "write ranks: [0, 1], or ranks: 0..1")])
    first, last = int(match[1]), int(match[2])
    if last >= MOST_RANKS:
        message = f"{found(value)}; allowed: ranks from 0 to {MOST_RANKS - 1}"
        raise refusal([Problem((), message, "use replicas: for copies of the placement")])
    if first > last:
        message = f"{found(value)}; allowed: a range that goes up, its end included"
        raise refusal([Problem((), message, f"write ranks: {last}..{first}, or a list")])
    return tuple(range(first, last + 1))


def _check_ranks(ranks: tuple[int, ...]) -> tuple[int, ...]:
    if not ranks:
        message = "found an empty list; allowed: at least one rank"
        raise refusal([Problem((), message, "write ranks: [0]")])
    seen: dict[int, int] = {}
    problems = []
    for position, rank in enumerate(ranks):
        if rank in seen:
            message = f"found rank {rank} twice in one entry; allowed: once"
            remedy = "remove it; for unequal parts write shares beside split"
            problems.append(Problem((position,), message, remedy))
        seen[rank] = position
    if problems:
        raise refusal(problems)
    return ranks


Rank = Annotated[int, Field(ge=0, lt=MOST_RANKS)]
ScheduleName = Annotated[
    str,
    PlainValidator(_read_schedule),
    WithJsonSchema({"type": "string", "enum": list(SCHEDULES)}),
]
LayerRange = Annotated[str, Field(pattern=TEXT, max_length=LONGEST)]
_LAYER_RANGE: JsonDict = {"type": "string", "pattern": TEXT, "maxLength": LONGEST}
Layers = Annotated[
    str | tuple[str, ...],
    PlainValidator(read_layers),
    WithJsonSchema(
        {
            "anyOf": [
                _LAYER_RANGE,
                {"type": "array", "items": _LAYER_RANGE, "minItems": 1, "uniqueItems": True},
            ]
        }
    ),
]
Ranks = Annotated[
    tuple[Rank, ...],
    Field(strict=False),
    AfterValidator(_check_ranks),
    BeforeValidator(_read_ranks),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": MOST_RANKS},
                    "minItems": 1,
                    "uniqueItems": True,
                },
                {"type": "string", "pattern": _RANGE_OF_RANKS},
            ]
        }
    ),
]
_SHARES: JsonDict = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1, "maximum": LARGEST},
    "minItems": 1,
}


def _split_schema(names: JsonDict, any_split: JsonDict) -> JsonDict:
    """What may stand under ``split``.

    Args:
        names: of the axes of a grid, as the JSON Schema of an object says it.
        any_split: one axis, or none.
    """
    parts: JsonDict = {"type": "object", "minProperties": 1, **names}
    return {"anyOf": [any_split, {**parts, "not": {"required": ["channel", "input"]}}]}


def _shares_schema(names: JsonDict) -> JsonDict:
    """What may stand under ``shares``; see :func:`_split_schema`."""
    by_axis: JsonDict = {"type": "object", "minProperties": 1, **names}
    return {"anyOf": [_SHARES, by_axis, {"type": "null"}]}


def _of_axes(value: JsonDict) -> JsonDict:
    """A mapping from axes of the built-in layers."""
    return {"properties": dict.fromkeys(AXES, value), "additionalProperties": False}


def _of_any_axes(value: JsonDict) -> JsonDict:
    """A mapping from any axes; editors offer those of the built-in layers."""
    return {
        "properties": dict.fromkeys(AXES, value),
        "propertyNames": {"pattern": f"^{AXIS}$", "not": {"const": NONE}},
        "additionalProperties": value,
    }


_PARTS: JsonDict = {"type": "integer", "minimum": 1}
_AXIS: JsonDict = {"enum": [NONE, *AXES]}
_ANY_AXIS: JsonDict = {"anyOf": [_AXIS, {"type": "string", "pattern": f"^{AXIS}$"}]}

SplitOrGrid = Annotated[
    str | Grid,
    PlainValidator(read_split),
    PlainSerializer(lambda split: dict(split.axes) if isinstance(split, Grid) else split),
    WithJsonSchema(_split_schema(_of_any_axes(_PARTS), _ANY_AXIS)),
]
ListOrShares = Annotated[
    tuple[int, ...] | Shares | None,
    PlainValidator(read_shares),
    PlainSerializer(lambda shares: dict(shares.axes) if isinstance(shares, Shares) else shares),
    WithJsonSchema(_shares_schema(_of_any_axes(_SHARES))),
]
_KNOWN_AXES: JsonDict = {
    "split": _split_schema(_of_axes(_PARTS), _AXIS),
    "shares": _shares_schema(_of_axes(_SHARES)),
}
# In the JSON Schema: only layers of a user's own kind have axes that are not named here.
_AXES_OF_MODEL: JsonDict = {
    "if": {"properties": {"model": {"required": ["name"]}}, "required": ["model"]},
    "then": {"properties": {"placement": {"items": {"properties": _KNOWN_AXES}}}},
}


LossScale = Annotated[
    float | str | None,
    PlainValidator(read_loss_scale),
    WithJsonSchema(precision.LOSS_SCALE_SCHEMA),
]
OptimizerOrNone = Annotated[
    OptimizerChoice | None,
    PlainValidator(read_optimizer),
    PlainSerializer(lambda choice: None if choice is None else choice.written),
    WithJsonSchema(optimizer.schema()),
]


class _Part(BaseModel):
    """Strict and unchangeable: ``true`` is not 1, ``"128"`` is not 128, unknown keys are errors."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


OWN_MODEL = ("file", "function")


def _allow_own_options(schema: dict[str, Any]) -> None:
    """In the JSON Schema: a built-in model has the options named here, a file's any."""
    options = {k: v for k, v in schema["properties"].items() if k not in OWN_MODEL}
    own = {k: v for k, v in schema["properties"].items() if k in OWN_MODEL}
    of_file = "An option of the model: a keyword of the function."
    schema["oneOf"] = [
        {"required": ["name"], "properties": options, "additionalProperties": False},
        {
            "required": list(OWN_MODEL),
            "properties": {**own, "name": False},
            "additionalProperties": {"description": of_file},
        },
    ]
    del schema["properties"], schema["additionalProperties"]


class ModelChoice(_Part):
    """The network: one of the built-in models by name, or a function in a Python file, whose
    keywords are further keys."""

    model_config = ConfigDict(json_schema_extra=_allow_own_options)

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="A built-in model.",
        examples=["alexnet2012"],
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="A Python file that defines the model, seen from the plan's folder.",
        examples=["my_net.py"],
    )
    function: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=200,
        description="The function in that file which returns the model.",
        examples=["build"],
    )
    classes: int | None = Field(
        default=None,
        ge=1,
        le=MOST_IMAGES,
        description="Outputs of the last layer.",
        examples=[1000],
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Height and width of an image, pixels.",
        examples=[224],
    )
    width: float | None = Field(
        default=None, gt=0, le=1024, description="Factor on the number of kernels.", examples=[0.25]
    )
    norm: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Response norm, as the model names it.",
    )

    _own_options: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _set_own_options_aside(
        cls, data: Any, read: ModelWrapValidatorHandler[ModelChoice]
    ) -> ModelChoice:
        """What a file's function takes is the function's to say."""
        of_file = isinstance(data, dict) and data.get("name") is None and set(OWN_MODEL) & set(data)
        if not of_file:
            return read(data)
        choice = read({key: data[key] for key in OWN_MODEL if key in data})
        choice._own_options = {k: v for k, v in data.items() if k not in ("name", *OWN_MODEL)}
        return choice

    @model_validator(mode="after")
    def _check(self) -> ModelChoice:
        if problems := checks.of_model(self):
            raise refusal(problems)
        return self

    @model_serializer(mode="wrap")
    def _with_own_options(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.file is None:
            built_in: dict[str, Any] = write(self)
            return built_in
        return {"file": self.file, "function": self.function, **self._own_options}

    @property
    def options(self) -> dict[str, Any]:
        """What the model is built with, by option."""
        said = self.model_dump(exclude_none=True)
        return {k: v for k, v in said.items() if k not in ("name", *OWN_MODEL)}


FormatOrFormats = Annotated[
    str | Formats | None,
    PlainValidator(read_precision),
    PlainSerializer(lambda read: read.written if isinstance(read, Formats) else read),
    WithJsonSchema(precision.schema()),
]


class Training(_Part):
    """Changes to the model's own recipe; what is left out stays as the recipe has it."""

    optimizer: OptimizerOrNone = Field(
        default=None,
        description="How weights are changed: a name, or a mapping of name and options. Options "
        "that are left out have their defaults; momentum and weight_decay of an optimizer with "
        "momentum are the recipe's.",
        examples=[{"name": "adamw", "betas": [0.9, 0.95]}],
    )
    lr: float | None = Field(
        default=None, ge=0, description="Learning rate at the start.", examples=[0.01]
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="Momentum of the update.", examples=[0.9]
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="Weight decay.", examples=[0.0005]
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Seed of everything that is drawn.", examples=[0]
    )
    precision: FormatOrFormats = Field(
        default=None,
        description="Number format of weights and activations; tfloat32: products in it, of "
        "float32 values. With bfloat16 and float16 gradients are summed in float32, and what is "
        "updated is a float32 master of every weight. Or four formats one by one.",
        examples=["float32"],
    )
    dtype: FormatOrFormats = Field(
        default=None, description="The older name of precision.", examples=["float32"]
    )
    loss_scale: LossScale = Field(
        default=None,
        description="Factor on the loss, for float16: a number, or dynamic, which is halved when a "
        "gradient is not finite and doubled after 2,000 updates.",
        examples=["dynamic"],
    )
    layer_batch: dict[LayerRange, Annotated[int, Field(ge=1, le=MOST_IMAGES)]] | None = Field(
        default=None,
        description="These layers take their batch in slices of so many images and update after "
        "each (the variable batch size of One Weird Trick, 2014).",
        examples=[{"fc6..fc8": 128}],
    )

    @model_validator(mode="after")
    def _fits_optimizer(self) -> Training:
        if problems := checks.of_training(self):
            raise refusal(problems)
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> Training:
        """Under either name it is found under both."""
        chosen = self.precision or self.dtype
        if None not in (self.precision, self.dtype) and self.precision != self.dtype:
            message = f"found {self.dtype} beside precision: {self.precision}; allowed: one of them"
            raise refusal([Problem(("dtype",), message, "keep precision")])
        for name in ("precision", "dtype"):
            object.__setattr__(self, name, chosen)
        return self


class Entry(_Part):
    """Some layers and the ranks that share them."""

    layers: Layers = Field(
        description="first..last in model order, one layer, blocks.0..11 for repeated blocks, all, "
        "or a list of these.",
        examples=["conv1..pool2"],
    )
    ranks: Ranks = Field(
        description="The ranks that share them: a list, or 0..7, its end included.",
        examples=[[0, 1]],
    )
    split: SplitOrGrid = Field(
        description="What the ranks divide: none (each of them computes all), batch, channel (each "
        "computes some output channels), height (some rows), width (some columns), token (some "
        "tokens), input (each consumes some input channels), an axis of a layer kind of one's own, "
        "or a grid in row-major order such as {batch: 2, channel: 2}.",
        examples=["channel"],
    )
    shares: ListOrShares = Field(
        default=None,
        description="Unequal parts, one whole number a part; for a grid a list by axis, such as "
        "{height: [2, 1]}, where an axis that is left out has equal parts.",
        examples=[[2, 1]],
    )
    exchange: Exchange = Field(
        default="gather",
        description="How a channel entry gets the images of the batch entry before it: all at "
        "once (gather), one rank's at a time (broadcast), 1/K of every rank's at a time (scatter).",
        examples=["gather"],
    )

    @property
    def grid(self) -> Grid:
        """The split as a grid; no axes at all for ``none``."""
        if isinstance(self.split, Grid):
            return self.split
        return Grid() if self.split == NONE else Grid(((self.split, len(self.ranks)),))

    def shares_of(self, axis: str) -> tuple[int, ...] | None:
        """Unequal parts along an axis; None for equal ones."""
        if isinstance(self.shares, Shares):
            return self.shares.of(axis)
        return self.shares if self.grid.has(axis) else None

    @property
    def layer_ranges(self) -> tuple[str, ...]:
        """The texts under ``layers``, be it one or a list."""
        return (self.layers,) if isinstance(self.layers, str) else self.layers

    @model_validator(mode="after")
    def _check(self) -> Entry:
        if problems := checks.of_entry(self):
            raise refusal(problems)
        return self


class Plan(_Part):
    """How a model is split over ranks, and how a batch passes through it.

    Two plans are equal when they say the same, wherever they were read from.
    """

    model_config = ConfigDict(json_schema_extra=_AXES_OF_MODEL)

    schema_version: Annotated[
        int, PlainValidator(_read_version), WithJsonSchema({"const": SCHEMA_VERSION})
    ] = Field(description="The version of this format.", examples=[SCHEMA_VERSION])
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$",
        max_length=100,
        description="Names the plan in reports, metrics and folders: letters, digits, . _ -",
        examples=["krizhevsky2012"],
    )
    summary: str = Field(default="", max_length=2000, description="One sentence on what it does.")
    source: str = Field(default="", max_length=2000, description="Where it was published.")
    model: ModelChoice = Field(description="The network.", examples=[{"name": "alexnet2012"}])
    global_batch_size: int = Field(
        ge=1, le=MOST_IMAGES, description="Images a step, over all replicas.", examples=[128]
    )
    n_microbatches: int = Field(
        default=1,
        ge=1,
        le=2**20,
        description="Parts of a replica's batch in the pipeline.",
        examples=[8],
    )
    schedule: ScheduleName = Field(
        default="GPipe",
        description="The order of forwards and backwards in the pipeline.",
        examples=["1F1B"],
    )
    placement: tuple[Entry, ...] = Field(
        strict=False,
        description="Who computes which layers: in layer order, covering every layer once.",
        examples=[[{"layers": "conv1..fc8", "ranks": [0], "split": "none"}]],
        json_schema_extra={"minItems": 1},
    )
    replicas: int = Field(
        default=1, ge=1, le=MOST_RANKS, description="Copies of the whole placement.", examples=[2]
    )
    activation_checkpoint: Literal["never", "except_last", "always"] = Field(
        default="never",
        description="Which microbatches recompute their forward in the backward to save memory.",
        examples=["never"],
    )
    optimizer_sharding: Literal["none", "zero1"] = Field(
        default="none",
        description="Whether ranks with equal weights share out the optimizer's state (zero1).",
        examples=["none"],
    )
    training: Training = Field(
        default_factory=Training,
        description="Changes to the model's own recipe.",
        examples=[{}],
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @model_validator(mode="after")
    def _check(self) -> Plan:
        if problems := checks.of_plan(self):
            raise refusal(problems)
        return self

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that one copy of the placement uses."""
        return 1 + max(rank for entry in self.placement for rank in entry.ranks)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.replicas * self.ranks_per_replica

    @property
    def microbatch_size(self) -> int:
        """Images in one microbatch of one replica."""
        return self.global_batch_size // (self.replicas * self.n_microbatches)

    @property
    def folder(self) -> FilePath:
        """The folder of the plan's file; the working folder if it has none."""
        return self._origin.folder

    @property
    def model_file(self) -> FilePath | None:
        """Where ``model.file`` is; None for a built-in model."""
        return None if self.model.file is None else self.folder / self.model.file

    def location(self, path: Path) -> str:
        """Where a value was written, for messages.

        Args:
            path: such as ``("placement", 1, "ranks")``.

        Returns:
            ``partitions/x.yaml:12, placement[1].ranks``, or ``--set training.lr=0.1``.
        """
        return self._origin.location(path) or f"plan {self.name}, {dotted(path)}".rstrip(", ")

    def to_yaml(self) -> str:
        """The plan as YAML that loads back to an equal plan, overrides included.

        ``model.file`` stays as written, seen from ``folder``: copy that file along, or it is
        not found from another folder.
        """
        from orchestrator.plan.write import write_plan  # needs this class; only writers need it

        return write_plan(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return _content(self) == _content(other)

    def __hash__(self) -> int:
        return hash((self.name, self.placement, self.global_batch_size, self.n_microbatches))


def _content(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in Plan.model_fields}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a plan file, for editors."""
    schema = Plan.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "orchestrator plan",
        **{key: value for key, value in schema.items() if key != "title"},
    }
