"""Pushing to a Grafana: nothing twice, one message for each way to fail, no secret shown."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.observe.grafana import Change, Grafana, Login
from tests.observe.grafana_stub import PASSWORD, TOKEN, USER, Answer, Stub, grafana

BOARDS: list[dict[str, Any]] = [
    {"uid": "one", "title": "One", "panels": []},
    {"uid": "two", "title": "Two"},
]
BAD_GATEWAY = Answer(502, "<html><h1>502 Bad Gateway</h1>no message from upstream</html>")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with grafana() as running:
        yield running


def push(stub: Stub, login: Login | None = None, **changed: Any) -> list[Change]:
    what = {"folder": "Orchestrator", "data_source": "orchestrator", "prometheus": "http://p:9090"}
    with Grafana(stub.url, login or Login(token=TOKEN), timeout_s=5.0) as target:
        return list(target.push(BOARDS, **{**what, **changed}))


def refused(stub: Stub, login: Login | None = None, **changed: Any) -> str:
    with pytest.raises(InputError) as error:
        push(stub, login, **changed)
    assert error.value.remedy
    for secret in (TOKEN, PASSWORD):
        assert secret not in str(error.value)
    return str(error.value)


def changes(found: list[Change]) -> list[str]:
    return [change.change for change in found]


# -- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before_9", [False, True])
def test_created_once_and_left_alone_afterwards(before_9: bool) -> None:
    """A push without a change once made a new version, and said "updated"."""
    with grafana(before_9=before_9) as stub:
        first = push(stub)
        assert changes(first) == ["created"] * 4
        for _ in range(2):
            again = push(stub)
            assert changes(again) == ["unchanged"] * 4
            assert [change.url for change in again] == [change.url for change in first]
        assert len(stub.folders) == len(stub.sources) == 1
        assert sorted(stub.dashboards) == ["one", "two"]
        assert stub.posts("/folders") == stub.posts("/datasources") == 1
        assert stub.posts("/dashboards/db") == 2
        assert stub.dashboards["one"]["dashboard"]["version"] == 1


@pytest.mark.parametrize("before_9", [False, True])
def test_a_dashboard_that_somebody_changed_is_overwritten(before_9: bool) -> None:
    with grafana(before_9=before_9) as stub:
        push(stub)
        stub.dashboards["one"]["dashboard"]["panels"] = [{"type": "text"}]
        del stub.dashboards["two"]["dashboard"]["title"]
        assert changes(push(stub))[2:] == ["updated", "updated"]
        assert stub.dashboards["one"]["dashboard"]["panels"] == []
        assert stub.dashboards["two"]["dashboard"]["version"] == 2


@pytest.mark.parametrize("before_9", [False, True])
def test_a_dashboard_that_lies_elsewhere_is_moved(before_9: bool) -> None:
    with grafana(before_9=before_9) as stub:
        push(stub)
        assert changes(push(stub, folder="Lab")) == ["created", "unchanged", "updated", "updated"]
        assert changes(push(stub, folder="Lab")) == ["unchanged"] * 4


@pytest.mark.parametrize("prefix", ["", "/grafana", "/behind/a-proxy"])
def test_it_may_be_served_under_a_path(prefix: str) -> None:
    with grafana(prefix=prefix) as stub:
        one = push(stub)[2]
        host = stub.url.removesuffix(prefix)
        assert one == Change("dashboard", "One", "created", f"{host}{prefix}/d/one/one")


def test_user_and_password_do_as_well(stub: Stub) -> None:
    assert changes(push(stub, Login(user=USER, password=PASSWORD))) == ["created"] * 4


def test_a_folder_made_by_hand_is_used(stub: Stub) -> None:
    """Its title has to be encoded for the search; a folder inside another one is not it."""
    stub.add_folder("R&D #1 plans", "inner", parent="outer")
    stub.add_folder("R&D #1", "by-hand")
    push(stub, folder="R&D #1")
    assert stub.dashboards["one"]["meta"]["folderUid"] == "by-hand"
    assert stub.posts("/folders") == 0


def test_a_folder_may_be_renamed_in_grafana(stub: Stub) -> None:
    push(stub)
    [folder] = stub.folders.values()
    folder["title"] = "Training"
    assert changes(push(stub))[0] == "unchanged"
    assert len(stub.folders) == 1


def test_two_folders_keep_apart(stub: Stub) -> None:
    push(stub, folder="量子")
    push(stub, folder="Größe")
    assert len(stub.folders) == 2
    assert len(stub.dashboards) == 2  # they moved along


@pytest.mark.parametrize("status", [409, 412])
def test_another_push_made_the_folder_just_now(stub: Stub, status: int) -> None:
    def late(method: str, path: str) -> Answer | None:
        if (method, path) != ("POST", "/folders"):
            return None
        stub.add_folder("Orchestrator", "quicker")
        return Answer(status, {"message": "a folder with the same name already exists"})

    stub.override = late
    assert changes(push(stub))[0] == "unchanged"
    assert stub.dashboards["one"]["meta"]["folderUid"] == "quicker"


@pytest.mark.parametrize("before_9", [False, True])
def test_a_data_source_is_updated_and_keeps_what_was_set_by_hand(before_9: bool) -> None:
    with grafana(before_9=before_9) as stub:
        push(stub, data_source="Prometheus / lab")
        stub.sources[1]["isDefault"] = True
        stub.sources[1]["jsonData"]["timeInterval"] = "30s"
        found = push(stub, data_source="Prometheus / lab", prometheus="http://other:9090/")
        assert changes(found)[1] == "updated"
        assert stub.sources[1]["url"] == "http://other:9090"
        assert stub.sources[1]["isDefault"]
        assert stub.sources[1]["jsonData"] == {"httpMethod": "POST", "timeInterval": "30s"}
        assert len(stub.sources) == 1


def test_a_data_source_of_another_kind_is_left_alone(stub: Stub) -> None:
    stub.sources[1] = {"id": 1, "uid": "x", "name": "orchestrator", "type": "loki", "url": "u"}
    assert "is a loki" in refused(stub)
    assert stub.sources[1]["type"] == "loki"


def test_a_data_source_that_a_file_sets(stub: Stub) -> None:
    push(stub)
    stub.sources[1]["readOnly"] = True
    assert changes(push(stub))[1] == "unchanged"
    assert "is set by a file" in refused(stub, prometheus="http://other:9090")


# -- how it fails ---------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    message = refused(Stub(url=url))
    assert url in message
    assert "Connection refused" in message


def test_the_token_is_wrong(stub: Stub) -> None:
    message = refused(stub, Login(token="glsa_other"))
    assert "does not accept the token (401 Unauthorized)" in message
    assert "glsa_other" not in message


def test_the_password_is_wrong(stub: Stub) -> None:
    message = refused(stub, Login(user=USER, password="letmein"))
    assert "does not accept the user and password (401" in message
    assert "letmein" not in message


@pytest.mark.parametrize(
    "path", ["/folders", "/datasources", "/datasources/name/orchestrator", "/dashboards/db"]
)
def test_what_one_may_not(stub: Stub, path: str) -> None:
    said = "You'll need additional permissions"
    stub.override = lambda _, asked: Answer(403, {"message": said}) if asked == path else None
    message = refused(stub)
    assert f"403 Forbidden: {said}" in message
    assert "role Admin" in message


@pytest.mark.parametrize(
    ("status", "path"), [(412, "/dashboards/db"), (409, "/datasources"), (400, "/folders")]
)
def test_what_grafana_refuses_is_told_in_its_words(stub: Stub, status: int, path: str) -> None:
    said = Answer(status, {"message": "the reason"})
    stub.override = lambda method, asked: said if (method, asked) == ("POST", path) else None
    message = refused(stub)
    assert str(status) in message
    assert "the reason" in message


@pytest.mark.parametrize("path", ["/search", "/datasources", "/dashboards/db"])
def test_a_proxy_fails_with_a_page(stub: Stub, path: str) -> None:
    """grafana-api 1.0.3 raises TypeError for a page that holds the word "message"."""
    stub.override = lambda _, asked: BAD_GATEWAY if asked == path else None
    message = refused(stub)
    assert "502 Bad Gateway" in message
    assert "<" not in message


def test_grafana_fails(stub: Stub) -> None:
    stub.override = lambda *_: Answer(500, {"message": "database is locked"})
    assert "500 Internal Server Error: database is locked" in refused(stub)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Answer(204, None), "nothing where its JSON should be (204 No Content)"),
        (Answer(200, None), "nothing where its JSON should be (200 OK)"),
        (Answer(200, "<html>Welcome</html>"), "a page where its JSON should be (200 OK)"),
        (Answer(404, "404 page not found"), "a page where its JSON should be (404 Not Found)"),
        (Answer(200, {"status": "success"}), "something else where its JSON should be"),
        (Answer(200, []), "something else where its JSON should be"),
        (Answer(404, {"detail": "Not Found"}), "cannot search for the folder: 404 Not Found"),
    ],
)
def test_what_answers_is_not_grafana(stub: Stub, answer: Answer, found: str) -> None:
    stub.override = lambda *_: answer
    assert found in refused(stub)


def test_a_204_in_the_middle(stub: Stub) -> None:
    """grafana-api 1.0.3 raises JSONDecodeError."""
    stub.override = lambda _, path: Answer(204, None) if path == "/dashboards/db" else None
    assert "nothing where its JSON should be (204 No Content)" in refused(stub)


def test_it_is_somewhere_else(stub: Stub) -> None:
    """Followed, a POST would become a GET, and the token would go to another address."""
    there = Answer(301, "moved", {"Location": f"https://user:{PASSWORD}@b.example/api/x?token=1"})
    stub.override = lambda *_: there
    assert "it sends us on to https://b.example/api/x\n" in refused(stub)


def test_it_is_slow() -> None:
    with (
        grafana(delay_s=1.0) as stub,
        Grafana(stub.url, Login(token=TOKEN), timeout_s=0.1) as target,
        pytest.raises(InputError, match=r"no answer within 0\.1 s"),
    ):
        list(target.push([], "F", "D", "http://p"))


# -- logins -------------------------------------------------------------------------------------


def test_the_login_is_the_environment_s() -> None:
    password = {"GRAFANA_USER": USER, "GRAFANA_PASSWORD": PASSWORD}
    assert Login.from_environment(password) == Login(user=USER, password=PASSWORD)
    both = {**password, "GRAFANA_TOKEN": f"{TOKEN}\n"}  # as a file's content often ends
    assert Login.from_environment(both) == Login(token=TOKEN)
    for environment in ({}, {"GRAFANA_USER": USER}, {"GRAFANA_TOKEN": " "}):
        with pytest.raises(InputError, match="GRAFANA_TOKEN"):
            Login.from_environment(environment)


@pytest.mark.parametrize("token", [f"{TOKEN}\nX-Evil: 1", f"{TOKEN} {TOKEN}", f"{TOKEN}ü"])
def test_a_token_that_no_header_can_carry_is_not_shown(token: str) -> None:
    with pytest.raises(InputError) as error:
        Login.from_environment({"GRAFANA_TOKEN": token})
    assert TOKEN not in str(error.value)


def test_a_login_does_not_show_itself() -> None:
    shown = repr([Login(token=TOKEN), Login(user=USER, password=PASSWORD)])
    assert TOKEN not in shown
    assert PASSWORD not in shown
