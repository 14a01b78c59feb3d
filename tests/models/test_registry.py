"""Models by name and from a user's file; whatever is wrong is an ``InputError`` with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.models import build_model, load_model, model_names

PLACE = "p.yaml:4, model"
GOOD = """\
from orchestrator.models import Linear, Model


def build(classes=3, width=1.0):
    return Model("mine", (4,), [Linear(name="fc", features=classes)])
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "my_net.py"
    file.write_text(text)
    return file


def test_every_name_builds_a_model_of_that_name() -> None:
    assert len(model_names()) == 7
    for name in model_names():
        assert build_model(name, {}).name == name


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no model 'lenet'; models: .*lenet5") as caught:
        build_model("lenet", {}, PLACE)
    assert caught.value.place == PLACE
    assert caught.value.remedy == "model.name: lenet5"


def test_an_option_that_the_model_lacks_is_told_with_those_it_has() -> None:
    with pytest.raises(InputError, match="no option 'norm'; it has: classes, image_size, width"):
        build_model("lenet5", {"norm": "none"}, PLACE)


def test_a_users_model_gets_its_options(tmp_path: Path) -> None:
    model = load_model(written(tmp_path, GOOD), "build", {"classes": 5})
    assert (model.name, model.classes) == ("mine", 5)
    taking_all = GOOD.replace("classes=3, width=1.0", "**options").replace("=classes", "=3")
    assert load_model(written(tmp_path, taking_all), "build", {"norm": "none"}).classes == 3


WRONG = [
    ("def build(:\n", {}, "fails on import: SyntaxError"),
    ("import no_such_module_at_all\n", {}, "fails on import: ModuleNotFoundError"),
    ("1 / 0\n", {}, "fails on import: ZeroDivisionError"),
    ("raise SystemExit(3)\n", {}, "fails on import: SystemExit"),
    ("def other(): pass\n", {}, "has no function 'build'; it has: other"),
    ("build = 3\n", {}, "has no function 'build'; it has: none"),
    ("def build(): return [1]\n", {}, "returned list, not a Model"),
    ("def build(): pass\n", {}, "returned NoneType, not a Model"),
    ("def build(): raise KeyError('x')\n", {}, "my_net.py:build fails: KeyError: 'x'"),
    ("def build(depth): pass\n", {}, "my_net.py:build needs the option 'depth'"),
    (GOOD, {"norm": "none"}, "has no option 'norm'; it has: classes, width"),
    (GOOD.replace("features=classes", "features=3, groups=0"), {}, "groups: found 0"),
    (GOOD.replace("features=classes", "features=3, groups=2"), {}, "do not divide into 2 groups"),
    (GOOD.replace('name="fc"', 'name="loss"'), {}, "a layer cannot be 'loss'"),
]


@pytest.mark.parametrize(("text", "options", "message"), WRONG)
def test_a_users_file_that_is_wrong_is_told(
    tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(written(tmp_path, text), "build", options, PLACE)
    assert caught.value.place == PLACE


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model file"):
        load_model(tmp_path / "absent.py", "build", {}, PLACE)
    with pytest.raises(InputError, match="there is no model file"):
        load_model(tmp_path, "build", {}, PLACE)
    text = tmp_path / "net.txt"
    text.write_text(GOOD)
    with pytest.raises(InputError, match="is not a Python file"):
        load_model(text, "build", {}, PLACE)
