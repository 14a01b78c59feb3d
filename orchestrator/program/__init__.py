"""A plan and a model compiled to one explicit program: an op list per rank."""

from orchestrator.program.check import Deadlock, find_deadlock, grid
from orchestrator.program.compile import compile_plan
from orchestrator.program.ops import Op, Program
from orchestrator.program.precision import ITEMSIZE, Precision

__all__ = [
    "ITEMSIZE", "Deadlock", "Op", "Precision", "Program", "compile_plan", "find_deadlock", "grid",
]  # fmt: skip
