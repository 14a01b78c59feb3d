"""Dashboards into a Grafana, through its HTTP API: again and again, and nothing is there twice.

    folder         found by uid, then by title      or created
    data source    found by name; changed if its url is another      or created
    dashboards     found by uid; overwritten if they are others      or created

grafana-api sends the requests. Its errors are not used: it raises bare ``requests`` exceptions,
``TypeError`` for some error pages and ``JSONDecodeError`` for an empty answer. A hook looks at
every response before it does, so that each way to fail has one message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import requests
from grafana_api.grafana_face import GrafanaFace

from orchestrator.errors import InputError
from orchestrator.observe.dashboards.address import checked_url

Json: TypeAlias = dict[str, Any]

CREATED, UPDATED, UNCHANGED = "created", "updated", "unchanged"
SCRAPE_INTERVAL = "5s"  # as dashboards/prometheus/prometheus.yml has it


@dataclass(frozen=True)
class Login:
    """Who we are to Grafana: a token, or a user with a password. Never shown.

    Raises:
        InputError: a token that no HTTP header can carry.
    """

    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[!-~]*", self.token):
            raise InputError(
                "the token holds a blank, a line break or a letter that no token has",
                "GRAFANA_TOKEN",
                "copy it again from Grafana",
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Login:
        """GRAFANA_TOKEN, or GRAFANA_USER with GRAFANA_PASSWORD.

        Raises:
            InputError: neither is set.
        """
        token = environment.get("GRAFANA_TOKEN", "").strip()
        if token:
            return cls(token=token)
        user, password = environment.get("GRAFANA_USER"), environment.get("GRAFANA_PASSWORD")
        if not user or not password:
            raise InputError(
                "nothing to log in to Grafana with",
                "environment",
                "set GRAFANA_TOKEN to a service account's token, or GRAFANA_USER and "
                "GRAFANA_PASSWORD",
            )
        return cls(user=user, password=password)

    @property
    def name(self) -> str:
        """What it is, without saying it."""
        return "token" if self.token else "user and password"

    @property
    def credentials(self) -> str | tuple[bytes, bytes]:
        """As grafana-api takes it; bytes, for requests would write text as Latin-1."""
        return self.token or (self.user.encode(), self.password.encode())


@dataclass(frozen=True)
class Change:
    """What a push did to one thing.

    Args:
        kind: ``folder``, ``data source`` or ``dashboard``.
        name: its title.
        change: ``created``, ``updated`` or ``unchanged``.
        url: where a dashboard can be seen.
    """

    kind: str
    name: str
    change: str
    url: str = ""


class _Answered(Exception):
    """Grafana answered with an error that it documents: what it is depends on the question."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Grafana:
    """One Grafana, and what we do in it; a context manager that closes its connections.

    Args:
        url: its address, with the path that it is served under, if any.
        timeout_s: how long to wait for a connection, and for an answer.

    Raises:
        InputError: (all methods) it cannot be reached, refuses us, or is not Grafana.
    """

    def __init__(self, url: str, login: Login, timeout_s: float = 10.0) -> None:
        self.url = checked_url(url, "--url", "http://localhost:3000")
        self._login = login
        self._timeout_s = timeout_s
        parts = urlsplit(self.url)
        path = parts.path.strip("/")
        self._face = GrafanaFace(
            auth=login.credentials,
            host=parts.netloc,
            protocol=parts.scheme,
            url_path_prefix=f"{path}/" if path else "",
            timeout=timeout_s,
        )
        self._face.api.s.hooks["response"].append(self._look_at)

    def __enter__(self) -> Grafana:
        return self

    def __exit__(self, *_: object) -> None:
        self._face.api.s.close()

    def push(
        self, dashboards: Sequence[Json], folder: str, data_source: str, prometheus: str
    ) -> Iterator[Change]:
        """Create or update everything, one thing at a time, told as it is done.

        Args:
            dashboards: as :func:`orchestrator.observe.dashboards.shipped_dashboards` gives them.
            folder: title of the folder.
            data_source: name of the Prometheus data source.
            prometheus: Prometheus' address as Grafana's server reaches it.
        """
        prometheus = checked_url(prometheus, "--prometheus", "http://localhost:9090")
        place, change = self._folder(folder)
        yield Change("folder", folder, change)
        yield Change("data source", data_source, self._data_source(data_source, prometheus))
        for dashboard in dashboards:
            yield self._dashboard(dashboard, place)

    # -- what is pushed ----------------------------------------------------------------------------

    def _folder(self, title: str) -> tuple[Json, str]:
        uid = f"orchestrator-{hashlib.sha1(title.encode()).hexdigest()[:12]}"
        found = self._find_folder(uid, title)
        if found is not None:
            return found, UNCHANGED
        create = self._face.folder.create_folder
        try:
            return self._ask("create the folder", create, title, uid), CREATED
        except _Answered as error:
            if error.status not in (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED):
                raise self._told("create the folder", error) from None
        found = self._find_folder(uid, title)  # another push may have been quicker
        if found is not None:
            return found, UNCHANGED
        raise InputError(
            f"Grafana has a folder {title!r} already, and does not show it to this "
            f"{self._login.name}",
            "--folder",
            "give another title, or the right to see it",
        )

    def _find_folder(self, uid: str, title: str) -> Json | None:
        by_uid: Json | None = self._find("look for the folder", self._face.folder.get_folder, uid)
        if by_uid is not None:
            if "uid" not in by_uid:  # the first answer of all
                raise self._not_grafana("something else", HTTPStatus.OK)
            return by_uid
        search = self._face.search.search_dashboards  # it does not encode what it is given
        query = quote(title, safe="")
        hits = self._must("search for the folder", search, query, None, "dash-folder", wanted=list)
        for hit in hits:
            if hit.get("title") == title and not hit.get("folderUid"):  # not inside another folder
                inside: Json | None = self._find(
                    "look for the folder", self._face.folder.get_folder, hit["uid"]
                )
                return inside
        return None

    def _data_source(self, name: str, url: str) -> str:
        face = self._face.datasource
        wanted = {"name": name, "type": "prometheus", "access": "proxy", "url": url}
        by_name = quote(name, safe="")
        found = self._find("look for the data source", face.get_datasource_by_name, by_name)
        if found is None:
            settings = {"httpMethod": "POST", "timeInterval": SCRAPE_INTERVAL}
            new = {**wanted, "jsonData": settings}
            self._must("create the data source", face.create_datasource, new)
            return CREATED
        if all(found.get(key) == value for key, value in wanted.items()):
            return UNCHANGED
        if found.get("type") != "prometheus" or found.get("readOnly"):
            kind = "is set by a file" if found.get("readOnly") else f"is a {found.get('type')}"
            raise InputError(
                f"Grafana's data source {name!r} {kind}", "--data-source", "give another name"
            )
        changed = {**found, **wanted}  # the rest is what somebody set in Grafana
        doing = "update the data source"
        # By uid since Grafana 9; by number before, which later ones mean to drop.
        by_uid = self._find(doing, face.update_datasource, f"uid/{found.get('uid')}", changed)
        if by_uid is None:
            self._must(doing, face.update_datasource, found["id"], changed)
        return UPDATED

    def _dashboard(self, dashboard: Json, folder: Json) -> Change:
        face, title = self._face.dashboard, dashboard["title"]
        doing = f"push the dashboard {title}"
        before = self._find(doing, face.get_dashboard, dashboard["uid"])
        if before is not None and _is_there(before, dashboard, folder):
            seen_at = self._page(before["meta"].get("url", ""))
            return Change("dashboard", title, UNCHANGED, seen_at)
        message = {
            "dashboard": {**dashboard, "id": None},
            "folderId": folder.get("id"),  # up to Grafana 8
            "folderUid": folder["uid"],
            "overwrite": True,
            "message": "orchestrator dashboards push",
        }
        answer = self._must(doing, face.update_dashboard, message)
        change = CREATED if before is None else UPDATED
        return Change("dashboard", title, change, self._page(answer.get("url", "")))

    def _page(self, path: str) -> str:
        """A page's address; Grafana tells it from the host on."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{path}"

    # -- questions and answers ---------------------------------------------------------------------

    def _find(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None where there is no such thing (404)."""
        try:
            return self._ask(doing, call, *arguments)
        except _Answered as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise self._told(doing, error) from None

    def _must(
        self, doing: str, call: Callable[..., Any], *arguments: Any, wanted: type = dict
    ) -> Any:
        try:
            return self._ask(doing, call, *arguments, wanted=wanted)
        except _Answered as error:
            raise self._told(doing, error) from None

    def _ask(
        self, doing: str, call: Callable[..., Any], *arguments: Any, wanted: type = dict
    ) -> Any:
        """One request. What ``requests`` raises is not shown: it can hold headers."""
        try:
            answer = call(*arguments)
            if not isinstance(answer, wanted):
                raise self._not_grafana("something else", HTTPStatus.OK)
            return answer
        except requests.Timeout:
            message = f"no answer within {self._timeout_s:g} s, trying to {doing}"
            remedy = "--timeout with more seconds, or another --url"
        except requests.exceptions.SSLError:
            message = "its certificate is not trusted, or it does not speak https there"
            remedy = "http:// for https://, or REQUESTS_CA_BUNDLE=its certificate"
        except requests.ConnectionError as error:
            reason = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", str(error))
            message = f"nothing answers there ({reason[1] if reason else 'connection lost'})"
            remedy = "start Grafana, or give its address with --url or GRAFANA_URL"
        except (requests.RequestException, UnicodeError):
            message = f"could not ask it to {doing}"
            remedy = "check --url"
        raise InputError(message, self.url, remedy) from None

    def _look_at(self, response: requests.Response, **_: Any) -> None:
        """Every response comes through here, before grafana-api sees it."""
        status, body = response.status_code, _json(response)
        if response.is_redirect:
            # Followed, a POST would turn into a GET.
            target = urlsplit(response.headers["Location"])
            where = (
                f"{target.scheme}://{target.hostname}{target.path}" if target.netloc else "a page"
            )
            raise InputError(
                f"it sends us on to {where}", self.url, "give that address, with --url"
            )
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise InputError(
                f"it failed, or a proxy before it: {_named(status)}{_message(body)}",
                self.url,
                "look into Grafana's log, and push again",
            )
        if status == HTTPStatus.UNAUTHORIZED:
            raise InputError(
                f"it does not accept the {self._login.name} ({_named(status)})",
                self.url,
                "set GRAFANA_TOKEN to a service account's token, or GRAFANA_USER and "
                "GRAFANA_PASSWORD",
            )
        if not isinstance(body, dict | list):
            raise self._not_grafana("a page" if response.content else "nothing", status)
        if status >= HTTPStatus.BAD_REQUEST:
            raise _Answered(status, _message(body))

    def _not_grafana(self, found: str, status: int) -> InputError:
        return InputError(
            f"that is not Grafana's API: {found} where its JSON should be ({_named(status)})",
            self.url,
            "the address of Grafana itself, with the path that it is served under, such as "
            "http://localhost:3000/grafana",
        )

    def _told(self, doing: str, error: _Answered) -> InputError:
        """The message for an error that is not part of the plan."""
        remedies: dict[int, str] = {
            HTTPStatus.FORBIDDEN: "a service account with the role Admin: data sources need it",
            HTTPStatus.NOT_FOUND: "check --url: is that Grafana?",
            HTTPStatus.CONFLICT: "another name or title",
            HTTPStatus.PRECONDITION_FAILED: "another --folder, or remove the one that is there",
        }
        remedy = remedies.get(error.status, "see what Grafana says")
        return InputError(
            f"cannot {doing}: {_named(error.status)}{error.message}", self.url, remedy
        )


def _is_there(found: Json, dashboard: Json, folder: Json) -> bool:
    """Whether Grafana has this very dashboard in this folder: a push would only add a version.

    Grafana adds keys of its own, such as ``id`` and ``version``, beside those that were pushed.
    """
    meta, stored = found.get("meta"), found.get("dashboard")
    if not isinstance(meta, dict) or not isinstance(stored, dict):
        return False
    by = ("folderUid", "uid") if meta.get("folderUid") else ("folderId", "id")  # up to Grafana 7
    return bool(meta.get(by[0]) == folder.get(by[1])) and all(
        key in stored and stored[key] == value for key, value in dashboard.items()
    )


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _json(response: requests.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return None


def _message(body: Any) -> str:
    """What Grafana says about it, in its own words; of a page, nothing."""
    said = body.get("message") if isinstance(body, dict) else None
    return f": {' '.join(said.split())[:300]}" if isinstance(said, str) and said else ""
