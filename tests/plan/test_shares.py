"""``shares``: a list along one axis, a mapping from axis to list for a grid."""

from __future__ import annotations

import jsonschema
import pytest

from orchestrator.errors import InputError
from orchestrator.plan import Entry, Plan, Shares, json_schema, read_plan
from orchestrator.plan.strict_yaml import read_document

HEAD = """schema_version: 1
name: shares
model: {name: alexnet2012}
global_batch_size: 8
placement:
"""


def text(split: str, shares: str, ranks: str = "0..5") -> str:
    return f"{HEAD}  - {{layers: all, ranks: {ranks}, split: {split}, shares: {shares}}}\n"


def entry(split: str, shares: str, ranks: str = "0..5") -> Entry:
    return read_plan(text(split, shares, ranks), "x.yaml").placement[0]


def test_a_mapping_has_shares_of_its_axes_and_equal_parts_of_others() -> None:
    found = entry("{height: 3, batch: 2}", "{height: [2, 1, 1]}")
    assert found.shares == Shares((("height", (2, 1, 1)),))
    assert found.shares_of("height") == (2, 1, 1)
    assert found.shares_of("batch") is None
    assert found.shares_of("channel") is None


@pytest.mark.parametrize("split", ["channel", "{channel: 2}"])
@pytest.mark.parametrize("shares", ["[2, 1]", "{channel: [2, 1]}"])
def test_one_axis_takes_either_form(split: str, shares: str) -> None:
    assert entry(split, shares, "[0, 1]").shares_of("channel") == (2, 1)


@pytest.mark.parametrize(
    ("split", "shares"),
    [
        ("channel", "[1, 1, 1, 1, 1, 2]"),
        ("{height: 3, batch: 2}", "{height: [2, 1, 1]}"),
        ("{height: 2, batch: 3}", "{batch: [3, 1, 1], height: [2, 1]}"),
    ],
)
def test_either_form_is_written_back_as_it_was(split: str, shares: str) -> None:
    plan = read_plan(text(split, shares))
    yaml = plan.to_yaml()
    assert f"shares: {shares}" in yaml
    assert read_plan(yaml) == plan
    assert hash(read_plan(yaml)) == hash(plan)
    assert Plan.model_validate(plan.model_dump()) == plan
    for written in (text(split, shares), yaml):
        jsonschema.validate(read_document(written, "x").value, json_schema())


# split over six ranks, shares, place, message, remedy
GRID = "{height: 2, batch: 3}"
REFUSED = [
    (GRID, "{channel: [2, 1]}", "shares.channel", "along channel, which the split does not cut; "
     "allowed: height or batch", "remove channel, or add it to split"),
    (GRID, "{height: [2, 1, 1]}", "shares.height", "found 3 shares for 2 parts along height",
     "write height: [2, 1]"),
    (GRID, "{batch: []}", "shares.batch", "found 0 shares for 3 parts", "write batch: [2, 1, 1]"),
    (GRID, "{height: [2, 0]}", "shares.height[1]", "found 0; allowed: a whole number, 1 or more",
     "write it like height: [2, 1]"),
    (GRID, "{height: [true, 1]}", "shares.height[0]", "found true (a boolean)", "[2, 1]"),
    (GRID, "{height: [1.5, 1]}", "shares.height[0]", "found 1.5; allowed: a whole", "[2, 1]"),
    (GRID, "{height: 2}", "shares.height", "found 2; allowed: a list of whole numbers, one for "
     "each part", "write it like height: [2, 1]"),
    (GRID, "{hight: [2, 1]}", "shares.hight", "found shares along hight, which the split does "
     "not cut; allowed: height or batch",
     "did you mean height?"),
    (GRID, "{}", "shares", "found an empty mapping", "{height: [2, 1]}"),
    (GRID, "[2, 1]", "shares", "one list of shares beside a grid; allowed: a list for each axis",
     "write shares: {batch: [2, 1, 1]}"),
    (GRID, "[{height: [2, 1]}, 1]", "shares[0]", "found a mapping (height); allowed: a whole",
     "write it like shares: [2, 1]"),
    (GRID, "3", "shares", "found 3; allowed: a list of whole numbers, one for each part, or a "
     "mapping from axis to list", "shares: [2, 1]"),
    ("channel", "[1, 2]", "shares", "found 2 shares for 6 ranks", "shares: [2, 1, 1, 1, 1, 1]"),
    ("channel", "[1, 1, 1, 1, 1, 2147483648]", "shares[5]", "at most 2147483647", "[2, 1]"),
    ("none", "{batch: [2, 1]}", "shares", "beside none", "remove shares"),
]  # fmt: skip


@pytest.mark.parametrize(("split", "shares", "place", "message", "remedy"), REFUSED)
def test_shares_that_do_not_fit_the_split_are_refused(
    split: str, shares: str, place: str, message: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        entry(split, shares)
    assert caught.value.location == f"x.yaml:6, placement[0].{place}"
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "shares",
    [
        "{hight: [1]}",
        "{}",
        "{height: [0]}",
        "{height: 2}",
        "[{height: [1]}, 1]",
        "3",
        "[]",
        "{batch: []}",
    ],
)
def test_editors_refuse_the_same(shares: str) -> None:
    value = read_document(text(GRID, shares), "x").value
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(value)


def test_unequal_batch_parts_of_a_grid_need_not_divide_the_microbatch() -> None:
    assert entry(GRID, "{batch: [2, 1, 1]}").shares_of("batch") == (2, 1, 1)
    with pytest.raises(InputError, match="3 batch parts of a microbatch of 8"):
        entry(GRID, "{height: [2, 1]}")
