"""A rank's first step without the others: everything is loaded before a transfer can wait for it.

A kernel that is launched for the first time is loaded, and the driver may let the loading wait for
all that runs. If that is a receive whose sender waits for this rank in turn, nothing goes on ("Lazy
Loading" in the CUDA programming guide). The same goes for the memory that the first step takes from
the driver, and for what cuDNN and cuBLAS set up.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from orchestrator.execute.device import Mark
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.transport import CountingTransport, Handle, Pieces
from orchestrator.program.boundary import Route


def warm_up(interpreter: RankInterpreter, step: int) -> None:
    """Run a step with zeros for what other ranks would send, and leave everything as it was.

    Weights, optimizer state and torch's random state keep their bits; nothing is counted. Copies
    are kept on the host meanwhile.

    Args:
        step: whose images and labels are read.
    """
    tensors = _state(interpreter)
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    transport, interpreter.transport = (
        interpreter.transport, CountingTransport(_Alone(), interpreter.rank)
    )  # fmt: skip
    sent, interpreter.sent = interpreter.sent, Counter()
    interpreter.rehearsing = True
    device = interpreter.device.torch
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for handle in interpreter.step(step):
            raise AssertionError(interpreter.waits_for(handle))
    interpreter.rehearsing = False
    interpreter.transport, interpreter.sent = transport, sent
    interpreter.rest()
    with torch.no_grad():
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)


def _state(interpreter: RankInterpreter) -> list[Tensor]:
    """What stays from step to step."""
    return [
        tensor for parameters in interpreter.parameters.values() for tensor in parameters.tensors()
    ]


class _Nothing:
    """A transfer that is over, since there is none."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def join(self) -> None:
        pass

    def marks(self) -> list[tuple[Mark, Mark]]:
        raise AssertionError("a step that is not reported has no times")


class _Alone:
    """A transport without peers: zeros come in."""

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        for _, tensor in receives:
            tensor.zero_()
        return _Nothing()

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        return _Nothing()
