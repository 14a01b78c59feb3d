"""The allocator keeps what is freed: tensors made in every step fault their pages in the first."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from orchestrator.execute.host_memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(size) for size in range(9_000_000, 12_000_000, 500_000)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
faults()
print(kept, sum(faults() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's allocator")
def test_large_tensors_are_taken_from_the_system_once() -> None:
    def run(keep: bool) -> list[str]:
        command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    told, kept = run(True)
    if told == "False":
        pytest.skip("another C library")
    assert int(kept) < int(run(False)[1]) / 5
