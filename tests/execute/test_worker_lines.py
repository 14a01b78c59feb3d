"""The line between the driver and a worker, without Ray: what the driver tells."""

from __future__ import annotations

import queue
import threading

from orchestrator.execute.worker_context import DriverLine, WorkerDone, WorkerLines, WorkerUp


def connected(lines: WorkerLines, rank: int) -> DriverLine:
    line = DriverLine(lines.address, lines.key, WorkerUp(rank, rank, "here", "cpu", 1))
    assert lines.next(10.0) == WorkerUp(rank, rank, "here", "cpu", 1)
    return line


def test_each_rank_hears_what_it_is_told_in_order() -> None:
    lines = WorkerLines("127.0.0.1")
    heard: list[queue.SimpleQueue[object]] = [queue.SimpleQueue(), queue.SimpleQueue()]
    workers = [connected(lines, rank) for rank in (0, 1)]
    for worker, ear in zip(workers, heard, strict=True):
        worker.listen(dict, ear.put)
    for number in range(500):
        lines.tell(number % 2, {"number": number})
    lines.tell(7, "nobody")
    lines.tell(0, "nothing that rank 0 listens for")
    for rank, ear in enumerate(heard):
        got = [ear.get(timeout=10) for _ in range(250)]
        assert got == [{"number": number} for number in range(rank, 500, 2)]
    assert not workers[0].stop_requested()
    for worker, rank in zip(workers, (0, 1), strict=True):
        worker.end(WorkerDone(rank))
    lines.close()


def test_a_worker_that_does_not_read_holds_up_nobody() -> None:
    """Far more than the socket's buffers hold; an order to the others still gets through."""
    lines = WorkerLines("127.0.0.1")
    released = threading.Event()
    stuck, well = connected(lines, 0), connected(lines, 1)

    def never_done(payload: object) -> None:
        released.wait(60)

    stuck.listen(bytes, never_done)
    heard: queue.SimpleQueue[object] = queue.SimpleQueue()
    well.listen(str, heard.put)
    for _ in range(64):
        lines.tell(0, b"x" * 2**20)
    lines.tell(1, "still there?")
    assert heard.get(timeout=10) == "still there?"
    released.set()
    stuck.end(WorkerDone(0))
    well.end(WorkerDone(1))
    lines.close()
