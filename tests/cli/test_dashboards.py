"""``orchestrator dashboards``: what it prints and writes, and that no secret is among it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.observe.dashboards import build, written
from orchestrator.observe.dashboards.prometheus import prometheus_files
from tests.cli.command import command, refused
from tests.observe.grafana_stub import PASSWORD, TOKEN, USER, Answer, Stub, grafana


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GRAFANA_URL", "GRAFANA_TOKEN", "GRAFANA_USER", "GRAFANA_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A Grafana that the environment names, under a path, with a token for it."""
    with grafana(prefix="/grafana") as running:
        monkeypatch.setenv("GRAFANA_URL", running.url)
        monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
        yield running


def first_words(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


# -- push -----------------------------------------------------------------------------------------


def test_push_twice(stub: Stub) -> None:
    first, second = command("dashboards", "push"), command("dashboards", "push")
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    assert first_words(first.out) == ["created"] * 7
    assert first_words(second.out) == ["unchanged"] * 7
    overview = (
        f"created    dashboard    Orchestrator: Overview  {stub.url}/d/orchestrator-overview/"
    )
    assert overview in first.out
    assert {d["uid"] for d in build().values()} == stub.dashboards.keys()
    assert [len(stub.folders), len(stub.sources)] == [1, 1]
    assert TOKEN not in first.out + second.out


def test_push_as_json_with_a_user(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFANA_TOKEN")
    monkeypatch.setenv("GRAFANA_USER", USER)
    monkeypatch.setenv("GRAFANA_PASSWORD", PASSWORD)
    ended = command("dashboards", "push", "--json", "--folder", "Lab", "--data-source", "lab")
    found = json.loads(ended.out)
    assert ended.code == 0
    assert [change["change"] for change in found["changes"]] == ["created"] * 7
    assert [change["name"] for change in found["changes"][:2]] == ["Lab", "lab"]
    assert USER not in ended.out
    assert PASSWORD not in ended.out


def test_what_is_pushed_is_what_is_exported(stub: Stub) -> None:
    command("dashboards", "push", "--data-source", "lab")
    command("dashboards", "export", "--data-source", "lab", "--out", "out")
    exported = [json.loads(path.read_text()) for path in Path("out").iterdir()]
    assert len(exported) == 5
    for dashboard in exported:
        pushed = stub.dashboards[dashboard["uid"]]["dashboard"]
        assert {**dashboard, "id": 1, "version": 1} == pushed  # these two are Grafana's


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(401, {"message": "Invalid API key"}), "does not accept the token (401"),
        (Answer(403, {"message": "no rights"}), "403 Forbidden: no rights"),
        (Answer(502, "<html>message</html>"), "502 Bad Gateway"),
        (Answer(204, None), "not Grafana's API"),
        (Answer(200, "<html></html>"), "not Grafana's API"),
    ],
)
def test_push_is_refused(stub: Stub, answer: Answer, says: str) -> None:
    stub.override = lambda *_: answer
    message = refused("dashboards", "push")
    assert says in message
    assert message.startswith(f"error: {stub.url}: ")
    assert "\n  remedy: " in message
    assert TOKEN not in message


def test_push_to_one_who_is_slow(stub: Stub) -> None:
    stub.delay_s = 1.0
    assert "no answer within 0.1 s" in refused("dashboards", "push", "--timeout", "0.1")


def test_push_without_a_login() -> None:
    assert "set GRAFANA_TOKEN" in refused("dashboards", "push")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--url", f"http://{USER}:{PASSWORD}@localhost"), "--url: the address holds a user"),
        (("--prometheus", f"http://{USER}:{PASSWORD}@p"), "--prometheus: the address holds a user"),
        (("--prometheus", "prometheus:9090"), "--prometheus: 'prometheus:9090' is no http address"),
        (("--folder", " "), "a name without a letter"),
        (("--timeout", "0"), "--timeout"),
    ],
)
def test_push_of_what_cannot_be_meant(stub: Stub, arguments: tuple[str, ...], says: str) -> None:
    message = refused("dashboards", "push", *arguments)
    assert says in message
    assert PASSWORD not in message
    assert stub.asked == []


# -- export and prometheus ------------------------------------------------------------------------

EXPORTED = {name: written(board) for name, board in build().items()}
FILES = [("export", "dashboards", EXPORTED), ("prometheus", "prometheus", prometheus_files())]
each_verb = pytest.mark.parametrize(("verb", "out", "files"), FILES)


def texts(folder: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}


@each_verb
def test_files_are_written_once(verb: str, out: str, files: dict[str, str]) -> None:
    first, second = command("dashboards", verb), command("dashboards", verb)
    assert (first.code, second.code) == (0, 0)
    assert texts(out) == files
    assert first_words(first.out)[: len(files)] == ["written"] * len(files)
    assert first_words(second.out)[: len(files)] == ["unchanged"] * len(files)


@each_verb
def test_what_somebody_edited_stays(verb: str, out: str, files: dict[str, str]) -> None:
    command("dashboards", verb)
    edited = Path(out) / sorted(files)[0]
    edited.write_text("mine")
    (Path(out) / sorted(files)[1]).unlink()
    message = refused("dashboards", verb)
    assert f"not overwritten: {edited.name}\n" in message
    assert edited.read_text() == "mine"
    assert len(texts(out)) == len(files) - 1, "none is written if one cannot be"
    assert command("dashboards", verb, "--force").code == 0
    assert texts(out) == files


@each_verb
def test_a_folder_that_cannot_be(verb: str, out: str, files: dict[str, str]) -> None:
    Path("file").write_text("")
    assert "cannot write to file" in refused("dashboards", verb, "--out", "file")


def test_prometheus_says_how_to_start() -> None:
    url = "http://10.0.0.7:9464/targets"
    ended = command("dashboards", "prometheus", "--out", "p", "--discovery-url", url)
    assert "prometheus --config.file=p/prometheus.yml" in ended.out
    assert f'url: "{url}"' in Path("p/prometheus.yml").read_text()
