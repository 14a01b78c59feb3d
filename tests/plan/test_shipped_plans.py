"""Every plan in ``partitions/`` loads, and its schema file is the one the code defines."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from orchestrator.errors import InputError
from orchestrator.plan import Plan, json_schema, load_plan, read_plan, shipped, shipped_names
from orchestrator.plan.strict_yaml import read_document

NAMES = shipped_names("partitions")
WORLD_SIZES = {
    "columns-x-data": 4,
    "data-parallel": 2,
    "four-columns": 4,
    "isolated-columns": 2,
    "krizhevsky2012": 2,
    "krizhevsky2012-half": 1,
    "megatron-fc": 2,
    "one-weird-trick-broadcast": 2,
    "one-weird-trick-gather": 2,
    "one-weird-trick-scatter": 2,
    "pipeline-1f1b": 2,
    "pipeline-gpipe": 2,
    "pipeline-interleaved": 2,
    "pipeline-x-data": 4,
    "pipeline-zero-bubble": 2,
    "single": 1,
}


def test_every_shipped_plan_is_in_the_table() -> None:
    """A plan that was in none of the tests' tables once went unnoticed."""
    assert set(WORLD_SIZES) == set(NAMES)


@pytest.mark.parametrize("name", sorted(WORLD_SIZES))
def test_a_shipped_plan_loads_and_is_named_as_its_file(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert plan.world_size == WORLD_SIZES[name]
    assert plan.global_batch_size == 128
    assert plan.summary
    assert plan.placement[0].layer_ranges[0].startswith("conv1")
    assert plan.placement[-1].layer_ranges[-1].endswith("fc8")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_plan_survives_yaml_and_pickle(name: str) -> None:
    plan = load_plan(name)
    again = read_plan(plan.to_yaml())
    assert again == plan
    assert again.to_yaml() == plan.to_yaml()
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(again) == hash(plan)


@pytest.mark.parametrize("name", NAMES)
def test_editors_are_told_the_schema_and_agree(name: str) -> None:
    text = (shipped("partitions") / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=plan.schema.json\n")
    assert max(map(len, text.splitlines())) <= 100
    jsonschema.validate(read_document(text, name).value, json_schema())


def test_the_written_plan_fits_the_schema_too() -> None:
    text = load_plan("columns-x-data", ["training.lr=0.5", "replicas=2"]).to_yaml()
    jsonschema.validate(read_document(text, "written").value, json_schema())


def test_the_committed_schema_is_up_to_date() -> None:
    committed = json.loads((shipped("partitions") / "plan.schema.json").read_text())
    assert committed == json_schema(), (
        "run: python -m orchestrator.plan > partitions/plan.schema.json"
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"schema_version": 2},
        {"global_batch_size": "128"},
        {"schedule": "gpipe"},
        {"unknown": 1},
        {"model": {}},
        {"placement": []},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(bad: dict[str, object]) -> None:
    text = (shipped("partitions") / "single.yaml").read_text(encoding="utf-8")
    value = read_document(text, "single").value
    assert isinstance(value, dict)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value | bad, json_schema())


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        ({"name": "lenet5", "classes": 10}, True),
        ({"name": "lenet5", "depth": 3}, False),
        ({"name": "lenet5", "classes": 0}, False),
        ({"file": "net.py", "function": "build", "depth": 3, "classes": "all"}, True),
        ({"file": "net.py", "function": "build", "heads": [1, 2], "norm": None}, True),
        ({"file": "net.py", "depth": 3}, False),
        ({"file": "net.py", "function": "build", "name": "lenet5"}, False),
    ],
)
def test_the_schema_allows_a_models_options_as_the_loader_does(
    model: dict[str, object], fits: bool
) -> None:
    text = (shipped("partitions") / "single.yaml").read_text(encoding="utf-8")
    value = read_document(text, "single").value
    assert isinstance(value, dict)
    both = value | {"model": model}
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(both) is fits
    if fits:
        Plan.model_validate(both)
        return
    with pytest.raises(ValidationError):
        Plan.model_validate(both)


@pytest.mark.parametrize(
    "spelling",
    [
        "krizhevsky2012",
        "krizhevsky2012.yaml",
        "partitions/krizhevsky2012.yaml",
        "./partitions/krizhevsky2012",
    ],
)
def test_a_shipped_plan_is_found_from_any_folder(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_plan(spelling).name == "krizhevsky2012"


def test_a_file_of_ones_own_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partitions").mkdir()
    text = load_plan("single", ["summary=mine"]).to_yaml()
    (tmp_path / "partitions" / "single.yaml").write_text(text)
    assert load_plan("partitions/single.yaml").summary == "mine"
    assert load_plan("single").summary != "mine"


def test_a_run_folder_of_a_plans_name_hides_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "single").mkdir()
    assert load_plan("single").name == "single"


def test_a_folder_that_is_not_shipped_is_said_so() -> None:
    with pytest.raises(InputError, match="no folder 'nonsense'"):
        shipped("nonsense")
