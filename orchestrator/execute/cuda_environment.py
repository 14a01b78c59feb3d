"""What CUDA reads of a process's environment, once, when it starts there: set before, and checked.

CUDA_MODULE_LOADING=EAGER       loads every kernel at the start. Loaded when it is first
                                launched, a kernel may wait for a receive that runs, and so for
                                ever ("Lazy Loading" in the CUDA programming guide).
CUDA_DEVICE_MAX_CONNECTIONS=32  queues to the device, 8 unless it is set. Streams that share one
                                wait for each other, computations for receives among them; 1, as
                                Megatron-LM has it, serialises everything.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.errors import InputError

_LOADING, _CONNECTIONS = "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS"
_FEWEST, _MOST = 8, 32  # CUDA's default, and the most that it has


def cuda_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process with a GPU needs in its environment. The user's number of queues is kept;
    LAZY is not, since torch itself writes it there.

    Args:
        environment: as the user has it.

    Raises:
        InputError: the user's number of queues is too low, too high or none.
    """
    queues = environment.get(_CONNECTIONS, str(_MOST))
    if not (queues.isascii() and queues.isdigit() and _FEWEST <= int(queues) <= _MOST):
        raise InputError(
            f"{queues!r} queues to a GPU: streams that share one wait for each other, and a "
            f"computation could wait for a message; allowed: {_FEWEST} to {_MOST}",
            _CONNECTIONS,
            f"unset {_CONNECTIONS}, or set it to {_MOST}",
        )
    return {_LOADING: "EAGER", _CONNECTIONS: queues}


def check_cuda_environment(environment: Mapping[str, str]) -> None:
    """Refuse a process in which CUDA has started, or is about to, without these settings.

    Raises:
        InputError: one is missing or has another value.
    """
    for name, value in cuda_environment(environment).items():
        if environment.get(name) != value:
            has = environment.get(name)
            raise InputError(
                f"a worker on a GPU has {name}{f'={has}' if has else ' not set'}; it has to be "
                f"{value} before CUDA starts",
                remedy=f"export {name}={value}",
            )
