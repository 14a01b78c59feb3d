"""A plan and a model compiled to one explicit program: an op list per rank."""

from orchestrator.program.check import Deadlock, find_deadlock, grid
from orchestrator.program.compile import ITEMSIZE, compile_plan
from orchestrator.program.ops import Op, Program

__all__ = ["ITEMSIZE", "Deadlock", "Op", "Program", "compile_plan", "find_deadlock", "grid"]
