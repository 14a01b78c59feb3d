"""How much memory a rank really needed: the GPU allocator's peak, or the growth of the process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from orchestrator.execute.device import Cuda


class MemoryMeter:
    """Counts from its creation on.

    On a GPU what torch has allocated at most. On Linux the process's largest resident size since
    then, less its size then (which leaves out Python and the libraries); elsewhere 0, not known.
    """

    def __init__(self, device: Cuda | None) -> None:
        self.device = device
        if device is not None:
            torch.cuda.reset_peak_memory_stats(device.torch)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; see proc(5)
        self.start = _status("VmRSS")

    def peak_bytes(self) -> int:
        """Peak since the start, in bytes."""
        if self.device is not None:
            return torch.cuda.max_memory_allocated(self.device.torch)
        return max(0, _status("VmHWM") - self.start)


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
