"""A user's model file is imported as a script would be, and two of them do not meet."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.models import load_model
from orchestrator.models.model_file import import_model_file, model_sources

# Once such a file failed: dataclasses look their module up in ``sys.modules``.
POSTPONED = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from orchestrator.models import Layer, Linear, Model


@dataclass(frozen=True)
class Options:
    features: int = 3
    shared: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Twice(Layer):
    times: int = 2

    def compute(self, part: Any, inputs: Any, parameters: Any, draw: Any) -> Any:
        return inputs[0] * self.times


def build(times: int = 2) -> Model:
    chain = [Twice(name="twice", times=times), Linear(name="fc", features=Options().features)]
    return Model("postponed", (4,), chain)
"""
IMPORTING = """
import beside
import package.inner
from orchestrator.models import Linear, Model

def build():
    from later import extra
    return Model(beside.NAME, (4,), [Linear(name="fc", features=package.inner.SIZE + extra())])
"""


def write(folder: Path, **files: str) -> Path:
    """Files by name, ``_`` for ``/``; gives ``net.py``."""
    for name, text in files.items():
        path = folder / f"{name.replace('_', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "net.py"


def importing(folder: Path, name: str, size: int = 2) -> Path:
    return write(
        folder, net=IMPORTING, beside=f"NAME = {name!r}\n", package_inner=f"SIZE = {size}\n",
        later="from deeper import one\ndef extra(): return one\n", deeper="one = 1\n",
        stranger="1 / 0\n",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """No test leaves its neighbours to the next."""
    path = list(sys.path)
    yield
    for name in ("beside", "package", "package.inner", "later", "deeper"):
        sys.modules.pop(name, None)
    sys.path[:] = path


def test_dataclasses_with_postponed_annotations_load_and_are_checked(tmp_path: Path) -> None:
    file = write(tmp_path, net=POSTPONED)
    model = load_model(file, "build", {"times": 3})
    assert model.layers[0].kind == "twice"
    # past the option's own check: the annotation of the layer's field is read, too
    write(tmp_path, net=POSTPONED.replace("times=times", "times=str(times)"))
    with pytest.raises(InputError, match=r"net.py:25: layer twice: times: found '3'; allowed: a"):
        load_model(file, "build", {"times": 3})


def test_loaded_twice_a_file_gives_equal_models(tmp_path: Path) -> None:
    file = write(tmp_path, net=POSTPONED)
    first, second = load_model(file, "build", {}), load_model(file, "build", {})
    assert first == second
    assert pickle.loads(pickle.dumps(first)) == second


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    """As long as before, and in the same second: a cached bytecode would be taken for it."""
    file = importing(tmp_path, "one")
    assert load_model(file, "build", {}).name == "one"
    importing(tmp_path, "two")
    assert load_model(file, "build", {}).name == "two"
    file.write_text(IMPORTING.replace("extra())", "extra()+1)"))
    assert load_model(file, "build", {}).classes == 4
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_file_imports_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = importing(tmp_path / "a", "mine")
    monkeypatch.chdir(tmp_path)  # seen from another folder, by a path that is not absolute
    model = load_model(Path("a/net.py"), "build", {})
    assert (model.name, model.classes) == ("mine", 3)
    assert model_sources(file) == {
        file.parent / name
        for name in ("net.py", "beside.py", "package/inner.py", "later.py", "deeper.py")
    }


def test_files_and_neighbours_of_the_same_names_are_not_confused(tmp_path: Path) -> None:
    one = importing(tmp_path / "one", "first", 2)
    two = importing(tmp_path / "two", "second", 5)
    for _ in range(2):
        for file, name, classes in ((one, "first", 3), (two, "second", 6)):
            model = load_model(file, "build", {})
            assert (model.name, model.classes) == (name, classes)
    a, b = import_model_file(one), import_model_file(two)
    assert a.module is not b.module
    assert a.module.__name__ != b.module.__name__
    assert sys.path.count(str(two.parent)) == 1
    assert str(one.parent) not in sys.path


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """A file in the folder of a program does not take the program's own modules away."""
    before = dict(sys.modules)
    file = write(tmp_path, net="import json, orchestrator\n" + POSTPONED.strip().split("\n", 1)[1])
    load_model(file, "build", {})
    load_model(importing(tmp_path / "other", "mine"), "build", {})
    assert {name: sys.modules.get(name) for name in before} == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"net": "import beside\n", "beside": "\n1 / 0\n"}, r"by zero \(beside.py:2\)"),
        ({"net": "import beside\n", "beside": "\n\n)\n"}, r"SyntaxError: .*\(beside.py:3\)"),
        ({"net": "\nimport absent\n"}, r"No module named 'absent' \(net.py:2\)"),
        ({"net": "\nfrom . import beside\n"}, r"ImportError: .*\(net.py:2\)"),
        ({"net": "x = b'\\xff'.decode()\n"}, r"UnicodeDecodeError: .*\(net.py:1\)"),
    ],
)
def test_what_fails_on_import_is_told_with_its_line(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **files)
    for _ in range(2):  # the second time, too
        with pytest.raises(InputError, match=f"net.py fails on import: .*{message}") as caught:
            load_model(file, "build", {}, "p.yaml:3, model.file")
        assert caught.value.location == "p.yaml:3, model.file"
        assert "beside" not in sys.modules


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_bytes(b"x = '\xff'\n")
    with pytest.raises(InputError, match="net.py fails on import: SyntaxError"):
        load_model(file, "build", {})


def test_what_a_file_prints_is_not_on_standard_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = POSTPONED.replace("    chain =", "    print('building')\n    chain =") + "print('in')\n"
    load_model(write(tmp_path, net=text), "build", {})
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "in\nbuilding\n")


def test_a_file_may_lie_where_nobody_may_write(tmp_path: Path) -> None:
    file = importing(tmp_path / "a", "mine")
    os.chmod(file.parent, 0o555)
    try:
        assert load_model(file, "build", {}).name == "mine"
    finally:
        os.chmod(file.parent, 0o755)
