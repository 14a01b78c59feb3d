"""``layers``: a text or a list of texts, read, written back, and refused with place and remedy."""

from __future__ import annotations

import jsonschema
import pytest
from pydantic import ValidationError

from orchestrator.errors import InputError
from orchestrator.plan import Entry, Plan, json_schema, read_plan
from orchestrator.plan.layers import ends
from orchestrator.plan.strict_yaml import read_document

HEAD = """schema_version: 1
name: lists
model: {name: alexnet2012}
global_batch_size: 8
placement:
"""


def text(*layers: str) -> str:
    entries = (f"  - {{layers: {these}, ranks: [0], split: none}}\n" for these in layers)
    return HEAD + "".join(entries)


def plan(*layers: str) -> Plan:
    return read_plan(text(*layers), "x.yaml")


@pytest.mark.parametrize(
    ("written", "layers", "ranges"),
    [
        ("conv1..fc8", "conv1..fc8", ("conv1..fc8",)),
        ("[conv1]", ("conv1",), ("conv1",)),
        (
            "[a1..a3, c1, blocks.0..11]",
            ("a1..a3", "c1", "blocks.0..11"),
            ("a1..a3", "c1", "blocks.0..11"),
        ),
        ("all", "all", ("all",)),
        ("'012'", "012", ("012",)),
        ("['1', 2..3]", ("1", "2..3"), ("1", "2..3")),
    ],
)
def test_a_text_or_a_list_is_read_and_written_back(
    written: str, layers: str | tuple[str, ...], ranges: tuple[str, ...]
) -> None:
    (entry,) = plan(written).placement
    assert (entry.layers, entry.layer_ranges) == (layers, ranges)
    yaml = plan(written).to_yaml()
    assert read_plan(yaml) == plan(written)
    assert f"layers: {written}" in yaml
    assert hash(plan(written)) == hash(read_plan(yaml))
    assert Plan.model_validate(plan(written).model_dump()) == plan(written)
    jsonschema.validate(read_document(yaml, "x").value, json_schema())


def test_a_list_over_several_lines_is_written_on_one() -> None:
    names = [f"blocks.{i}.attention" for i in range(300)]
    rows = "".join(f"      - {name}\n" for name in names)
    long = f"{HEAD}  - layers:\n{rows}    ranks: [0]\n    split: none\n"
    assert f"layers: [{', '.join(names)}]" in read_plan(long).to_yaml()


REFUSED = [
    ("[]", "layers", "found an empty list", "write it like layers: conv1..pool2"),
    ("[conv1, conv2, conv1]", "layers[2]", "found layer conv1 twice in one list", "remove conv1"),
    ("[conv1..pool1, pool1..fc8]", "layers[1]", "layer pool1 twice in one list", "a layer earlier"),
    ("[conv1, [conv2, conv3]]", "layers[1]", "found a list of 2; allowed: text", "one list of"),
    ("[conv1, 2]", "layers[1]", "found 2; allowed: text", "put it in quotes: '2'"),
    ("[true]", "layers[0]", "found true (a boolean); allowed: text", "in quotes: 'true'"),
    ("[conv1, ~]", "layers[1]", "found nothing; allowed: text", "layers: conv1..pool2"),
    ("[a...b]", "layers[0]", "found 'a...b'; allowed: one layer's name, first..last", "conv1.."),
    ("['']", "layers[0]", "found ''; allowed: one layer's name", "conv1.."),
    ("'conv1, conv2'", "layers", "found 'conv1, conv2'; allowed: one layer's name", "conv1.."),
    ("{conv1: 2}", "layers", "found a mapping (conv1); allowed: text, or a list", "conv1.."),
    (f"[{'x' * 301}]", "layers[0]", "text of 301 characters; allowed: at most 300", "conv1.."),
]


@pytest.mark.parametrize(("written", "place", "message", "remedy"), REFUSED)
def test_a_list_that_cannot_be_is_refused(
    written: str, place: str, message: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan(written)
    assert caught.value.location == f"x.yaml:6, placement[0].{place}"
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert str(caught.value).count("remedy:") == 1


def test_every_fault_of_a_list_is_told() -> None:
    with pytest.raises(InputError, match=r"layers\[0\].*(?s:.*)layers\[2\]"):
        plan("[1, conv1, a b]")


@pytest.mark.parametrize("written", ["[]", "[a, a]", "[[a]]", "[1]", "[a...b]"])
def test_editors_refuse_the_same(written: str) -> None:
    value = read_document(text(written), "x").value
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(value)


def test_a_layer_in_two_lists_is_told_with_both_places() -> None:
    with pytest.raises(InputError, match="layer c3 here and in placement\\[0\\]") as caught:
        plan("[a1..a3, c1..c3]", "[b1, c3]")
    assert caught.value.location == "x.yaml:7, placement[1].layers[1]"
    assert caught.value.remedy == "remove c3 from this list"


def test_the_end_of_a_range_of_blocks_is_a_block() -> None:
    """``encoder.0..11`` and ``decoder.0..11`` were once said to have a layer 11 in common."""
    assert len(plan("encoder.0..11", "decoder.0..11").placement) == 2
    with pytest.raises(InputError, match=r"layer encoder.3 here and in placement\[0\]"):
        plan("encoder.0..3", "encoder.3..5")


def test_the_ends_of_every_form() -> None:
    assert ends("conv1") == ("conv1", "conv1")
    assert ends("conv1..pool2") == ("conv1", "pool2")
    assert ends("h.blocks.0..11") == ("h.blocks.0", "h.blocks.11")
    assert ends("blocks.0..head") == ("blocks.0", "head")
    assert ends("blocks.0..blocks.1") == ("blocks.0", "blocks.1")


def test_an_override_may_be_a_list_or_one_of_its_texts() -> None:
    (entry,) = read_plan(text("x"), overrides=["placement.0.layers=[a, b..c]"]).placement
    assert entry.layers == ("a", "b..c")
    (entry,) = read_plan(text("[a, b]"), overrides=["placement.0.layers.1=c"]).placement
    assert entry.layers == ("a", "c")


def test_keys_of_layer_batch_stay_texts() -> None:
    both = "training: {layer_batch: {fc6..fc7: 4, blocks.0..11: 4}}\n"
    assert read_plan(text("a") + both).training.layer_batch == {"fc6..fc7": 4, "blocks.0..11": 4}
    with pytest.raises(InputError, match="keys that are text"):
        read_plan(text("a") + "training: {layer_batch: {[fc6, fc7]: 4}}\n")


def test_an_entry_built_in_python_is_checked_alike() -> None:
    assert Entry(layers=("a", "b"), ranks=(0,), split="none").layers == ("a", "b")
    with pytest.raises(ValidationError, match="found an empty list"):
        Entry(layers=(), ranks=(0,), split="none")
