"""Small plans and models to compile: a plan is its entries, and the other keys that it needs."""

from __future__ import annotations

from orchestrator.models import Conv, Linear, Model, ReLU, ResponseNorm, build_model
from orchestrator.plan import Plan, read_plan
from orchestrator.program import Program, compile_plan

LENET = build_model("lenet5", {"image_size": 16, "width": 0.5})
# Three linear layers, 6 -> 8 -> 8 -> 4: every size in a test's expectation can be told by hand.
LINEAR = Model(
    "linear",
    (6,),
    [
        Linear(name="a", features=8),
        ReLU(name="relu"),
        Linear(name="b", features=8),
        Linear(name="c", features=4),
    ],
)


def normed(columns: int) -> Model:
    """A norm on eight channels of 3 x 3."""
    norm = ResponseNorm(name="norm", columns=columns)
    chain = [Conv(name="a", channels=8, kernel=1), norm, Linear(name="c", features=4)]
    return Model("normed", (2, 3, 3), chain)


def small_plan(*entries: str, batch: int = 4, more: str = "") -> Plan:
    """A plan from ``layers ranks split ...`` in YAML flow style and further top-level lines."""
    placement = "".join(f"  - {{{entry}}}\n" for entry in entries)
    head = "schema_version: 1\nname: small\nmodel: {name: lenet5}\n"
    text = f"{head}global_batch_size: {batch}\nplacement:\n{placement}{more}"
    return read_plan(text, "t.yaml")


def small_program(
    model: Model, *entries: str, batch: int = 4, more: str = "", dtype: str = "float32"
) -> Program:
    """A plan of :func:`small_plan`, compiled."""
    return compile_plan(small_plan(*entries, batch=batch, more=more), model, dtype=dtype)
