"""How a run's metrics get out: what a user can choose."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = ("0.0.0.0", "::")
# Without a given time the last values stay for one who has come before, until he comes again;
# Prometheus asks every 5 s with the shipped configuration, every 15 s with its own.
PATIENCE_S = 20.0


@dataclass(frozen=True)
class MetricsOptions:
    """How a run's metrics get out.

    Args:
        serve: over HTTP.
        host: address that the driver listens on; for workers see :func:`worker_host`.
        port: the driver's; 0 for any that is free.
        linger_s: how long the last values stay readable after the run; None: until whoever has
            read them before has done so once more, `PATIENCE_S` at most.
        pushgateway: URL of a Pushgateway that gets the last values.
    """

    serve: bool = True
    host: str = LOOPBACK
    port: int = 0
    linger_s: float | None = None
    pushgateway: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is to be counted at all."""
        return self.serve or self.pushgateway is not None


def worker_host(host: str, node: str, driver_node: str) -> str | None:
    """The address that a worker's metrics are served at, where the driver's are served at ``host``.

    Args:
        node, driver_node: addresses of the machines that the worker and the driver run on.

    Returns:
        On the driver's machine, and for every interface, the same address. On another machine that
        one's own address, for the driver's cannot be bound there. None if ``host`` is loopback and
        the worker is elsewhere: what it served on its own loopback, nobody could read who reads
        the driver's.
    """
    if host in EVERY_INTERFACE or node == driver_node:
        return host
    return None if is_loopback(host) else node


def is_loopback(host: str) -> bool:
    """Whether an address or a name means this machine only."""
    try:
        found = {str(address[0]) for *_, address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # no name of this machine
        return False
    return all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in found)
