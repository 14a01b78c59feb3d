"""How a run's metrics get out: what a user can choose."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
# Without a given time the last values stay for one who has come before, until he comes again;
# Prometheus asks every 5 s with the shipped configuration, every 15 s with its own.
PATIENCE_S = 20.0


@dataclass(frozen=True)
class MetricsOptions:
    """How a run's metrics get out.

    Args:
        serve: over HTTP.
        host: address that the driver and every worker listen on.
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
