"""An HTTP server for a few pages, in threads of its own."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from orchestrator.errors import InputError
from orchestrator.observe.metrics_options import EVERY_INTERFACE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from orchestrator.observe.metrics import Page

METRICS = "/metrics"
_CLIENT_PATIENCE_S = 10.0


class PageServer:
    """Serves pages until it is closed.

    Args:
        host: address to listen on.
        port: 0 for any that is free.
        pages: the application for a path; None: there is no such page.
        known_as: the host's name in `address` where `host` means every interface.

    Raises:
        InputError: it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pages: Callable[[str], WSGIApplication | None],
        known_as: str | None = None,
    ) -> None:
        def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            page = pages(environ["PATH_INFO"])
            if page is not None:
                return page(environ, start)
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"no such page\n"]

        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, UnicodeError) as error:  # an address that is taken, or none
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot serve metrics at {host}, port {port}: {why}",
                "--metrics-port, --metrics-host",
                "another port (0 for any that is free), an address of this machine, 0.0.0.0 for "
                "all of them; a run can also do with --no-metrics",
            ) from error
        self._server.set_app(answer)
        name = (known_as or socket.gethostname()) if host in EVERY_INTERFACE else host
        self.address = (
            f"[{name}]:{self._server.server_port}"
            if ":" in name
            else (f"{name}:{self._server.server_port}")
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="metrics"
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http://{self.address}"

    def close(self) -> None:
        """Stop listening; answers that are under way are let go."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def application(page: Page) -> WSGIApplication:
    """A page in the formats that Prometheus asks for."""
    found: WSGIApplication = make_wsgi_app(page.registry())
    return found


class _Server(ThreadingWSGIServer):
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""
