"""A Grafana for tests: answers as its HTTP API is documented, and fails as it is told to.

Folders, data sources, dashboards and search, from "Developers / HTTP API" of Grafana 7 to 12: the
codes and the messages are those of the documentation.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
TOKEN, USER, PASSWORD = "glsa_secret", "ann", "hunter2ü"


@dataclass(frozen=True)
class Answer:
    """What is sent: a dict or a list as JSON, text as a page, None as nothing at all."""

    status: int
    body: Json | list[Json] | str | None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Stub:
    """What it holds, what it was asked, and how it is to fail.

    Args:
        prefix: path it is served under, such as ``/grafana``.
        before_9: data sources are updated by number only, dashboards lie in folders by number.
        override: an answer in place of the usual one, or None.
    """

    prefix: str = ""
    before_9: bool = False
    override: Callable[[str, str], Answer | None] = lambda method, path: None
    delay_s: float = 0.0
    folders: dict[str, Json] = field(default_factory=dict)
    sources: dict[int, Json] = field(default_factory=dict)
    dashboards: dict[str, Json] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def posts(self, path: str) -> int:
        return self.asked.count(("POST", path))

    def add_folder(self, title: str, uid: str, parent: str = "") -> Json:
        number = len(self.folders) + 1
        self.folders[uid] = {"id": number, "uid": uid, "title": title, "version": 1}
        if parent:
            self.folders[uid]["folderUid"] = parent
        return self.folders[uid]

    def answer(self, method: str, target: str, authorization: str, body: Json) -> Answer:
        parts = urlsplit(target)
        if not parts.path.startswith(f"{self.prefix}/api/"):
            return Answer(200, "<html>Grafana's start page</html>")
        path = parts.path.removeprefix(f"{self.prefix}/api")
        self.asked.append((method, path))
        instead = self.override(method, path)
        if instead is not None:
            return instead
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if authorization not in (f"Bearer {TOKEN}", f"Basic {basic}"):
            return Answer(401, {"message": "Unauthorized"})
        match method, path.strip("/").split("/"):
            case "GET", ["folders", uid]:
                return _found(self.folders.get(uid), "folder not found")
            case "POST", ["folders"]:
                return self._create_folder(body)
            case "GET", ["search"]:
                return self._search(parse_qs(parts.query))
            case "GET", ["datasources", "name", name]:
                same = (s for s in self.sources.values() if s["name"] == unquote(name))
                return _found(next(same, None), "Data source not found")
            case "POST", ["datasources"]:
                return self._create_source(body)
            case "PUT", ["datasources", "uid", uid] if not self.before_9:
                number = next((n for n, s in self.sources.items() if s["uid"] == uid), 0)
                return self._update_source(number, body)
            case "PUT", ["datasources", number]:
                return self._update_source(int(number), body)
            case "GET", ["dashboards", "uid", uid]:
                return _found(self.dashboards.get(uid), "Dashboard not found")
            case "POST", ["dashboards", "db"]:
                return self._save_dashboard(body)
        return Answer(404, {"message": "Not found"})

    def _create_folder(self, body: Json) -> Answer:
        if body["uid"] in self.folders:
            return Answer(412, {"message": "a folder with the same uid already exists"})
        if any(f["title"] == body["title"] and "folderUid" not in f for f in self.folders.values()):
            return Answer(409, {"message": "a folder with the same name already exists"})
        return Answer(200, self.add_folder(body["title"], body["uid"]))

    def _search(self, query: dict[str, list[str]]) -> Answer:
        assert query["type"] == ["dash-folder"]
        text = query["query"][0].lower()
        hits = [
            {**f, "type": "dash-folder"}
            for f in self.folders.values()
            if text in f["title"].lower()
        ]
        return Answer(200, hits)

    def _create_source(self, body: Json) -> Answer:
        if any(s["name"] == body["name"] for s in self.sources.values()):
            return Answer(409, {"message": "data source with the same name already exists"})
        number = len(self.sources) + 1
        self.sources[number] = {"id": number, "uid": f"ds{number}", "readOnly": False, **body}
        answer = {"datasource": self.sources[number], "id": number, "message": "Datasource added"}
        return Answer(200, answer)

    def _update_source(self, number: int, body: Json) -> Answer:
        if number not in self.sources:
            return Answer(404, {"message": "Data source not found"})
        if self.sources[number]["readOnly"]:
            return Answer(403, {"message": "Cannot update read-only data source"})
        self.sources[number] = {**body, "id": number}
        return Answer(200, {"datasource": self.sources[number], "message": "Datasource updated"})

    def _save_dashboard(self, body: Json) -> Answer:
        dashboard = body["dashboard"]
        uid, title = dashboard["uid"], dashboard["title"]
        by = ("folderId", "id") if self.before_9 else ("folderUid", "uid")
        folder = next((f for f in self.folders.values() if f[by[1]] == body[by[0]]), None)
        if folder is None:
            return Answer(400, {"message": "folder not found"})
        old = self.dashboards.get(uid)
        if old is not None and not body.get("overwrite"):
            message = "The dashboard has been changed by someone else"
            return Answer(412, {"message": message, "status": "version-mismatch"})
        url = f"{self.prefix}/d/{uid}/{title.lower().replace(' ', '-')}"
        version = 1 if old is None else old["dashboard"]["version"] + 1
        self.dashboards[uid] = {
            "dashboard": {**dashboard, "id": 1, "version": version},
            "meta": {"url": url, by[0]: folder[by[1]]},
        }
        answer = {"id": 1, "uid": uid, "status": "success", "version": version, "url": url}
        return Answer(200, answer)


def _found(thing: Json | None, message: str) -> Answer:
    return Answer(404, {"message": message}) if thing is None else Answer(200, thing)


@contextmanager
def grafana(**how: Any) -> Iterator[Stub]:
    """A stub on a free port of loopback."""
    stub = Stub(**how)

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            time.sleep(stub.delay_s)
            authorization = self.headers.get("Authorization", "")
            answer = stub.answer(self.command, self.path, authorization, body)
            page = isinstance(answer.body, str)
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            content = b"" if answer.body is None else text.encode()
            with suppress(ConnectionError):  # who asked may be gone
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "text/html" if page else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stub.url = f"http://127.0.0.1:{server.server_port}{stub.prefix}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
