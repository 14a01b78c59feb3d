"""Number formats of a run: of parameters, of computation, of sums of gradients, of what is sent.

    precision: bfloat16          parameters and activations in bfloat16, sent as such; gradients
                                 summed in float32, and a float32 master of every parameter
    precision: {compute: bfloat16, reduce: bfloat16}        the same, gradients summed in bfloat16

Weights held in bfloat16 have 8 significant bits: an update below 1/512 of its weight rounds to
nothing. So what is updated is a float32 master (Micikevicius et al. 2018, "Mixed precision
training", section 3.1), which the weights are rounded from. A sum over ranks and microbatches loses
small terms in the same way, so gradients are summed in float32 unless a plan says otherwise, as
Megatron-LM does it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from orchestrator.errors import InputError
from orchestrator.plan import Plan
from orchestrator.plan.precision import Formats

ITEMSIZE = {"float64": 8, "float32": 4, "tfloat32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Precision:
    """Four number formats, each a key of :data:`ITEMSIZE`.

    Args:
        parameters: in which a rank holds weights while it computes.
        compute: of activations and their gradients; ``tfloat32`` is float32 whose products are in
            tfloat32.
        reduce: in which gradients of parameters are summed, over microbatches and over ranks.
        send: of activations, and their gradients, on their way to another rank.
    """

    parameters: str
    compute: str
    reduce: str
    send: str

    @classmethod
    def of(cls, name: str) -> Precision:
        """What a single format stands for."""
        held = "float32" if name == "tfloat32" else name
        return cls(held, name, held if ITEMSIZE[held] >= 4 else "float32", held)

    @property
    def master(self) -> str:
        """Format of what is updated, where that is not the parameters themselves; else empty."""
        return "float32" if ITEMSIZE[self.parameters] < 4 else ""

    @property
    def updated(self) -> str:
        """Format in which a parameter is updated, and of the state that goes with it."""
        return self.master or self.parameters

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return ITEMSIZE[self.compute]

    def item_of(self, *, gathered: bool) -> int:
        """Bytes of a value in a collective: of gathered parameters, or of summed gradients."""
        return ITEMSIZE[self.parameters if gathered else self.reduce]

    @property
    def formats(self) -> dict[str, str]:
        """By what it is of, each format."""
        return asdict(self)

    def __str__(self) -> str:
        if self == Precision.of(self.compute):
            return self.compute
        return (
            f"compute {self.compute}, parameters {self.parameters}, reduce {self.reduce}, "
            f"send {self.send}"
        )


def precision_of(plan: Plan) -> Precision:
    """The formats that a plan asks for.

    Raises:
        InputError: formats that do not go together.
    """
    given = plan.training.precision
    if given is None or isinstance(given, str):
        return Precision.of(given or "float32")
    usual = Precision.of(given.compute or "float32")
    found = Precision(**(usual.formats | given.written))
    if found.parameters != usual.parameters:
        _refuse(
            plan, given, "parameters", usual,
            "the format of compute, since ranks compute with the weights that they hold; of each "
            "weight in fewer bits than float32 there is a float32 master beside it",
        )  # fmt: skip
    for key in ("reduce", "send"):
        if ITEMSIZE[getattr(found, key)] > max(4, ITEMSIZE[found.compute]):
            allowed = "no more bits than compute, or than float32"
            _refuse(plan, given, key, usual, allowed)
    return found


def _refuse(plan: Plan, given: Formats, key: str, usual: Precision, allowed: str) -> None:
    raise InputError(
        f"found {key}: {getattr(given, key)} beside compute: {usual.compute}; allowed: {allowed}",
        plan.location(("training", "precision", key)),
        f"{key}: {getattr(usual, key)}, or leave it out",
    )
