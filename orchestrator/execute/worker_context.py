"""What a worker is told, and its line to the driver: one socket per worker, no Ray in here.

    worker                                     driver
    emit ─► queue ─► sender thread ══ TCP ══► receiver thread ─► queue ─► next() (main thread)
    stop_requested() ◄── reader thread ◄═════ sender thread ◄─ queue ◄─── stop(), abort()
    listen(callback) ◄──────┘                                       └──── tell(rank, payload)

The kernel closes the socket of a process that dies, so a killed worker is known in milliseconds
and without polling; and a worker told to abort leaves at once, even in the middle of a collective.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from typing import Any

from orchestrator.errors import InputError

ABORTED_EXIT_CODE = 70
_STOP, _ABORT = b"stop", b"abort"
# What a rank says when a peer broke, not itself; gloo and NCCL raise plain RuntimeErrors.
_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_PEER_LOST = re.compile(
    r"connection (closed|reset|refused|was aborted)|gloo|nccl|broken pipe|heartbeat", re.IGNORECASE
)


@dataclass(frozen=True)
class WorkerContext:
    """What a worker function gets.

    Args:
        rank: global rank, 0 .. world_size - 1; ranks are sorted by node, then by GPU.
        world_size: number of workers.
        local_rank: rank among the workers of its node.
        node: the address of the node the worker really runs on.
        driver_node: the address of the driver's node.
        device: ``cuda:0``, or ``cpu``.
        emit: sends (kind, payload) to the driver; in order, never waits for the network.
            The payload is pickled in the call, so it may be changed afterwards.
        stop_requested: true once the driver has asked the workers to end early; costs nothing.
        listen: give it a type and a function, to be called with what the driver tells this rank of
            that type from then on, in a thread of its own; what it told before is lost. Where no
            driver tells anything the function is never called.
        timeout_s: how long a rank waits for a peer, in seconds.
        driven: whether a driver hears what is emitted, and ends this rank if it has to.
    """

    rank: int
    world_size: int
    local_rank: int
    node: str
    driver_node: str
    device: str
    emit: Callable[[str, object], None]
    stop_requested: Callable[[], bool]
    listen: Callable[[type[Any], Callable[[Any], None]], None]
    timeout_s: float
    driven: bool


class WorkerFailed(RuntimeError):
    """A worker raised or died. ``str()`` is one message that names the rank.

    Args:
        rank: the rank that failed first; -1 if no rank came up.
        message: what happened, in one or two lines.
        traceback_text: the worker's own traceback, or "" where there is none.
    """

    def __init__(self, rank: int, message: str, traceback_text: str = "") -> None:
        super().__init__(rank, message, traceback_text)
        self.rank = rank
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"rank {self.rank} failed: {self.message}" if self.rank >= 0 else self.message


@dataclass(frozen=True)
class WorkerUp:
    """A worker has called: it runs, and its process group is up."""

    rank: int
    local_rank: int
    node: str
    device: str
    pid: int


@dataclass(frozen=True)
class Event:
    """What a worker emitted."""

    rank: int
    kind: str
    payload: object


class Cause(Enum):
    """Who is to blame for a failure, as far as one rank can tell."""

    OWN = "it raised"
    DIED = "its process ended without a word"
    PEER_LOST = "a peer hung up on it"
    TIMED_OUT = "a peer did not answer in time"


@dataclass(frozen=True)
class Failure:
    """A worker's end in an exception (``error``: an InputError to raise again) or by a signal."""

    rank: int
    cause: Cause
    message: str
    traceback_text: str = ""
    error: InputError | None = None

    def to_raise(self) -> Exception:
        """The exception the driver raises for it."""
        return self.error or WorkerFailed(self.rank, self.message, self.traceback_text)


@dataclass(frozen=True)
class WorkerDone:
    """A worker function returned; everything it emitted came before."""

    rank: int


Message = WorkerUp | Event | Failure | WorkerDone


@dataclass(frozen=True)
class Welcome:
    """What a worker is told first: what it has to do."""

    payload: bytes


def failure_from(rank: int, error: BaseException) -> Failure:
    """Tells a worker's exception in a form that survives the way to the driver."""
    input_error = error if isinstance(error, InputError) else None
    return Failure(
        rank=rank,
        cause=_cause(error),
        message=str(input_error or f"{type(error).__name__}: {error}"),
        traceback_text="".join(traceback.format_exception(error)),
        error=input_error,
    )


def _cause(error: BaseException) -> Cause:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        text = str(link)
        # torch's DistError family, and the RuntimeErrors of gloo and NCCL
        if _PEER_LOST.search(text) or type(link).__name__.startswith("Dist"):
            return Cause.TIMED_OUT if _TIMED_OUT.search(text) else Cause.PEER_LOST
        link = link.__cause__ or link.__context__
    return Cause.OWN


def first_cause(failures: list[Failure]) -> Failure:
    """Of several ranks' failures (in order of arrival) the one that explains the others.

    One rank's error breaks its peers' connections, and their complaints may arrive first. But a
    process that ends silently after a peer's timeout was ended by the launcher, for that timeout.
    """

    def weight(place: int) -> int:
        failure = failures[place]
        if failure.error is not None:
            return 0
        if failure.cause in (Cause.PEER_LOST, Cause.TIMED_OUT):
            return 2
        late = any(earlier.cause is Cause.TIMED_OUT for earlier in failures[:place])
        return 3 if failure.cause is Cause.DIED and late else 1

    return failures[min(range(len(failures)), key=weight)]


class DriverLine:
    """A worker's end of the socket.

    Args:
        address: of the driver's `WorkerLines`.
        key: its key.
        hello: who calls.
        dumps: how messages are pickled; cloudpickle's where payloads hold classes of a main script.
    """

    def __init__(
        self,
        address: tuple[str, int],
        key: bytes,
        hello: WorkerUp,
        dumps: Callable[[Message], bytes] = pickle.dumps,
    ) -> None:
        self._dumps = dumps
        self._rank = hello.rank
        self._connection = Client(address, authkey=key)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._ended = False
        self._hear: dict[type[Any], Callable[[Any], None]] = {}
        self._welcome: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True, name="driver-line-out")
        self._reader = threading.Thread(target=self._read, daemon=True, name="driver-line-in")
        self._put(hello)
        self._sender.start()
        self._reader.start()

    def emit(self, kind: str, payload: object) -> None:
        """Queues an event; see `WorkerContext.emit`."""
        self._put(Event(self._rank, kind, payload))

    def welcome(self) -> bytes:
        """What the driver has to tell this worker first; waits for it."""
        return self._welcome.get()

    def stop_requested(self) -> bool:
        """Whether the driver has asked to end early."""
        return self._stop.is_set()

    def listen(self, kind: type[Any], hear: Callable[[Any], None]) -> None:
        """Calls `hear` with what the driver tells of a type; see `WorkerContext.listen`."""
        self._hear[kind] = hear

    def end(self, last: Failure | WorkerDone, patience_s: float = 60.0) -> None:
        """Sends what is queued and the last message; returns when the driver has it all."""
        self._ended = True
        self._put(last)
        self._outgoing.put(None)
        self._sender.join(patience_s)
        self._reader.join(patience_s)  # the driver closes the line once it has read to the end

    def _put(self, message: Message) -> None:
        self._outgoing.put(self._dumps(message))

    def _send(self) -> None:
        try:
            while (data := self._outgoing.get()) is not None:
                self._connection.send_bytes(data)
        except OSError:
            pass  # the reader sees the same and decides

    def _read(self) -> None:
        try:
            while True:
                order = self._connection.recv_bytes()
                if order == _ABORT:
                    os._exit(ABORTED_EXIT_CODE)
                if order == _STOP:
                    self._stop.set()
                else:
                    message = pickle.loads(order)
                    if isinstance(message, Welcome):
                        self._welcome.put(message.payload)
                    else:
                        self._hear.get(type(message), _unhandled)(message)
        except (EOFError, OSError):
            if not self._ended:  # the driver is gone, and with it all who would read our results
                os._exit(ABORTED_EXIT_CODE)


def _unhandled(message: object) -> None:
    """Nobody listens for it."""


class WorkerLines:
    """The driver's end: accepts every worker's socket and merges what they say.

    Workers prove with a random key that they belong to this run before anything is unpickled.

    Args:
        host: the address to listen on; must be reachable from the workers' nodes.
        welcome: what a rank is told first; None for nothing. What it raises is told as that rank's
            failure.
    """

    def __init__(self, host: str, welcome: Callable[[int], Welcome] | None = None) -> None:
        self._welcome = welcome
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), backlog=256)
        self.address: tuple[str, int] = self._listener.address
        self._incoming: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lines: dict[int, _Line] = {}  # by rank
        self._lock = threading.Lock()
        self._order: bytes | None = None
        self._closed = False
        threading.Thread(target=self._accept, daemon=True, name="worker-lines").start()

    def next(self, timeout_s: float) -> Message | None:
        """The next message of any worker, or None if none came within `timeout_s` seconds."""
        try:
            return self._incoming.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def open_lines(self) -> int:
        """How many workers are connected."""
        with self._lock:
            return len(self._lines)

    def tell(self, rank: int, payload: object) -> None:
        """Hands a worker something (see `WorkerContext.listen`); dropped where it has gone.

        Never waits for the network. The payload is pickled in the call.
        """
        with self._lock:
            line = self._lines.get(rank)
        if line is not None:
            line.put(pickle.dumps(payload))

    def stop(self) -> None:
        """Asks the workers to end early; they see it in `stop_requested`."""
        self._order_all(_STOP)

    def abort(self) -> None:
        """Ends every worker's process at once, also of those that come up later."""
        self._order_all(_ABORT)

    def close(self) -> None:
        """Closes all lines; workers still there end."""
        self._closed = True
        self._listener.close()
        with self._lock:
            lines = list(self._lines.values())
            self._lines.clear()
        for line in lines:
            line.close()

    def _order_all(self, order: bytes) -> None:
        with self._lock:
            self._order = order
            for line in self._lines.values():
                line.put(order)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.01)
                continue
            threading.Thread(
                target=self._receive, args=(connection,), daemon=True, name="worker-line"
            ).start()

    def _receive(self, connection: Connection) -> None:
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            hello = pickle.loads(connection.recv_bytes())
        except Exception:  # not one of ours, or it died in the middle of the greeting
            connection.close()
            return
        line = _Line(connection)
        with self._lock:
            self._lines[hello.rank] = line
            if self._order is not None:
                line.put(self._order)
        self._incoming.put(hello)
        last = self._greet(line, hello.rank) or self._read_to_the_end(connection, hello)
        with self._lock:
            self._lines.pop(hello.rank, None)
            self._incoming.put(last)  # inside the lock: no open lines means all was delivered
        line.close()

    def _greet(self, line: _Line, rank: int) -> Failure | None:
        if self._welcome is not None:
            try:
                line.put(pickle.dumps(self._welcome(rank)))
            except Exception as error:
                return failure_from(rank, error)
        return None

    def _read_to_the_end(self, connection: Connection, hello: WorkerUp) -> Failure | WorkerDone:
        try:
            while True:
                message: Message = pickle.loads(connection.recv_bytes())
                if isinstance(message, Failure | WorkerDone):
                    return message
                self._incoming.put(message)
        except (EOFError, OSError):
            return Failure(
                hello.rank,
                Cause.DIED,
                f"its process (pid {hello.pid} on {hello.node}) ended without a word: "
                "killed from outside, out of memory, or a crash in native code",
            )
        except Exception as error:
            return failure_from(hello.rank, error)


class _Line:
    """Sends to one worker from a thread of its own, so that a stuck worker holds up nobody."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True, name="worker-line-out").start()

    def put(self, order: bytes) -> None:
        self._outgoing.put(order)

    def close(self) -> None:
        self._outgoing.put(None)
        self._connection.close()

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the receiver thread tells of it
            while (order := self._outgoing.get()) is not None:
                self._connection.send_bytes(order)
