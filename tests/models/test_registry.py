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


# Parameters and multiply-adds of an image, forward: a model that is in no test shows here.
MODELS = {
    "alexnet2012": (60_965_224, 724_406_816),
    "alexnet2012-fourcolumns": (60_037_480, 481_602_080),
    "alexnet2012-half": (59_798_312, 391_514_384),
    "alexnet2012-isolated": (60_526_952, 649_646_624),
    "alexnet2012-released": (60_965_224, 724_406_816),
    "alexnet2014": (61_100_840, 714_188_480),
    "lenet5": (61_706, 416_520),
}


def test_every_model_is_in_the_table() -> None:
    assert set(MODELS) == set(model_names())


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_a_model_of_that_name_and_size(name: str) -> None:
    model = build_model(name, {})
    assert model.name == name
    assert (model.parameters, model.macs) == MODELS[name]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no model 'lenet'; models: .*lenet5") as caught:
        build_model("lenet", {}, PLACE)
    assert caught.value.location == PLACE
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
    ("def build(): raise SystemExit(4)\n", {}, r"build fails: SystemExit: 4 \(my_net.py:1\)"),
    ("\ndef build(): return 1 / 0\n", {}, r"ZeroDivisionError: division by zero \(my_net.py:2\)"),
    ("\n\ndef build(:\n", {}, r"fails on import: SyntaxError: .* \(my_net.py:3\)"),
    (GOOD, {"classes": 0}, "my_net.py:5: layer fc: features: found 0; allowed: a whole number"),
    (GOOD, {"classes": "3"}, "my_net.py:5: layer fc: features: found '3'; allowed: a whole"),
    ("def build(n, /): pass\n", {"n": 1}, "has no option 'n'; it has: none"),
    ("class E(BaseException): pass\ndef build(): raise E\n", {}, r"fails: E \(my_net.py:2\)"),
    ("build = dict\n", {}, "returned dict, not a Model"),
    (GOOD.replace("features=classes", "features=3, groups=0"), {}, "groups: found 0"),
    (GOOD.replace("features=classes", "features=3, groups=2"), {}, "do not divide into 2 groups"),
    (GOOD.replace('name="fc"', 'name="loss"'), {}, "a layer cannot be 'loss'"),
]


ANNOTATED = """\
from __future__ import annotations
from orchestrator.models import Linear, Model

def build(depth: int = 1, widths: tuple[int, ...] = (4,), act: str | None = None, **more: int):
    chain = [Linear(name=f"fc{i}", features=n) for i, n in enumerate(widths * depth)]
    return Model(f"{act}-{depth}-{'-'.join(more)}", (4,), chain)
"""


def test_any_keyword_of_the_function_is_an_option(tmp_path: Path) -> None:
    file = written(tmp_path, ANNOTATED)
    model = load_model(file, "build", {"depth": 2, "widths": [3, 5], "act": "gelu", "heads": 4})
    assert model.name == "gelu-2-heads"
    assert [x.output.channels for x in model.layers[:-1]] == [3, 5, 3, 5]
    assert load_model(file, "build", {"act": None}).name == "None-1-"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("depth", "three", "option depth: found 'three'; allowed: a whole number"),
        ("depth", 3.0, r"option depth: found 3.0 \(float\); allowed: a whole number"),
        ("depth", True, r"option depth: found True \(bool\); allowed: a whole number"),
        ("widths", [3, "x"], r"option widths: found \(3, 'x'\) \(tuple\); allowed: a tuple, each"),
        ("act", 3, "option act: found 3; allowed: text, or None"),
    ],
)
def test_an_option_is_held_against_the_functions_annotations(
    tmp_path: Path, option: str, value: object, message: str
) -> None:
    places = {option: "p.yaml:4, model.x"}
    with pytest.raises(InputError, match=message) as caught:
        load_model(written(tmp_path, ANNOTATED), "build", {option: value}, PLACE, places)
    assert caught.value.location == "p.yaml:4, model.x"


def test_an_option_that_is_nearly_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(written(tmp_path, GOOD), "build", {"clases": 3}, PLACE, {"clases": "--set x"})
    assert (caught.value.location, caught.value.remedy) == ("--set x", "did you mean classes?")


@pytest.mark.parametrize(("text", "options", "message"), WRONG)
def test_a_users_file_that_is_wrong_is_told(
    tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(written(tmp_path, text), "build", options, PLACE)
    assert caught.value.location == PLACE


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model file"):
        load_model(tmp_path / "absent.py", "build", {}, PLACE)
    with pytest.raises(InputError, match="there is no model file"):
        load_model(tmp_path, "build", {}, PLACE)
    text = tmp_path / "net.txt"
    text.write_text(GOOD)
    with pytest.raises(InputError, match="is not a Python file"):
        load_model(text, "build", {}, PLACE)
