"""Each way to get a plan wrong, and what the user then reads: place, found, allowed, remedy."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.errors import InputError
from orchestrator.plan import Entry, ModelChoice, Plan, load_plan, read_plan

PLAN = """\
schema_version: 1
name: two
summary: Two columns.
model: {name: alexnet2012}
global_batch_size: 128
n_microbatches: 1
schedule: GPipe
placement:
  - {layers: conv1..drop7, ranks: [0, 1], split: channel}
  - {layers: fc8, ranks: [0], split: none}
replicas: 1
training: {}
"""


def refused(text: str, overrides: Sequence[str] = ()) -> InputError:
    with pytest.raises(InputError) as caught:
        read_plan(text, "x.yaml", overrides=overrides)
    assert "Traceback" not in str(caught.value)
    return pickle_through(caught.value)


def pickle_through(error: InputError) -> InputError:
    """Errors cross processes, so each must survive that."""
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, InputError)
    assert str(again) == str(error)
    return again


# What is replaced in PLAN, by what, and where, what and which remedy the message names.
WRONG = [
    ("GPipe", "gpipe", "x.yaml:7, schedule", "found 'gpipe'; allowed: GPipe, 1F1B", "mean GPipe?"),
    ("n_microbatches", "microbatches", "x.yaml:6, microbatches", "unknown key", "n_microbatches?"),
    ("replicas: 1", "lr: 1", "x.yaml:11, lr", "unknown key 'lr'", "under training"),
    ("{}", "{lrr: 1}", "x.yaml:12, training.lrr", "allowed: optimizer, lr", "did you mean lr?"),
    ("{}", "{dtype: floot32}", "x.yaml:12, training.dtype", "float64 or bfloat16", "float32?"),
    ("{}", "", "x.yaml:12, training", "found nothing", "training: {}"),
    ("{}", "{seed: -1}", "x.yaml:12, training.seed", "allowed: 0 or more", "seed: 0"),
    ("{}", "{lr: .inf}", "x.yaml:12, training.lr", "found inf; allowed: a finite", "lr: 0.01"),
    ("{}", "{momentum: 1}", "x.yaml:12, training.momentum", "less than 1", "momentum: 0.9"),
    ("{}", "{lr: true}", "x.yaml:12, training.lr", "found true (a boolean)", "lr: 0.01"),
    ("{}", "{layer_batch: {a...b: 1}}", "x.yaml:12, training.layer_batch", "first..last", "fc6.."),
    ("{}", "{layer_batch: {fc6: 0}}", "x.yaml:12, training.layer_batch.fc6", "1 or more", "fc6"),
    ("128", "true", "x.yaml:5, global_batch_size", "found true (a boolean)", "128"),
    ("128", "'128'", "x.yaml:5, global_batch_size", "found '128' (text)", "without quotes"),
    ("128", "128.0", "x.yaml:5, global_batch_size", "found 128.0", "write 128"),
    ("128", ".nan", "x.yaml:5, global_batch_size", "found nan", "128"),
    ("128", "-4", "x.yaml:5, global_batch_size", "found -4; allowed: 1 or more", "128"),
    ("128", "0", "x.yaml:5, global_batch_size", "allowed: 1 or more", "128"),
    ("128", "9" * 30, "x.yaml:5, global_batch_size", "at most", "128"),
    ("128", "9" * 9999, "x.yaml:5, global_batch_size", "9999 digits", "smaller"),
    ("128", "[128]", "x.yaml:5, global_batch_size", "found a list of 1", "128"),
    ("replicas: 1", "replicas: 3", "x.yaml:5, global_batch_size", "3 x 1 = 3", "126 or 129"),
    ("ches: 1", "ches: 0", "x.yaml:6, n_microbatches", "allowed: 1 or more", "8"),
    ("schema_version: 1", "schema_version: 2\nfoo: 3", "x.yaml:1", "reads version 1", "newer"),
    ("schema_version: 1", "schema_version: true", "x.yaml:1", "found true", "schema_version: 1"),
    ("schema_version: 1\n", "", "x.yaml:1, schema_version", "missing", "add schema_version: 1"),
    ("name: two", "name: a/b", "x.yaml:2, name", "letters, digits", "name: krizhevsky2012"),
    ("name: two", "name: 2012", "x.yaml:2, name", "allowed: text", "quotes: '2012'"),
    ("name: two", "name: two\nname: two", "x.yaml:3, name", "twice (first on line 2)", "keep one"),
    ("{name: alexnet2012}", "alexnet2012", "x.yaml:4, model", "a mapping", "{name: alexnet2012}"),
    ("{name: alexnet2012}", "{}", "x.yaml:4, model", "either name, or file", "name: alexnet2012"),
    ("{name: alexnet2012}", "{file: f}", "x.yaml:4, model", "file alone", "function: build"),
    ("{name: alexnet2012}", "{function: f}", "x.yaml:4, model", "function alone", "file: my_net"),
    ("{name: a", "{file: f, name: a", "x.yaml:4, model", "name beside file", "remove name"),
    ("{name: a", "{width: -1, name: a", "x.yaml:4, model.width", "more than 0", "width: 0.25"),
    ("[0, 1]", "[0, 2]", "x.yaml:9, placement[0].ranks", "but rank 1 is unused", "write rank 1"),
    ("[0, 1]", "[0, 9999]", "x.yaml:9, placement[0].ranks", "1 and others are", "write rank 1"),
    ("[0, 1]", "[0, 0]", "x.yaml:9, placement[0].ranks[1]", "rank 0 twice", "shares"),
    ("[0, 1]", "[0, -1]", "x.yaml:9, placement[0].ranks[1]", "0 or more", "ranks: [0, 1]"),
    ("[0, 1]", "[0, '1']", "x.yaml:9, placement[0].ranks[1]", "found '1'", "without quotes"),
    ("[0, 1]", "[0..1]", "x.yaml:9, placement[0].ranks[0]", "found '0..1'", "without brackets"),
    ("[0, 1]", "0-1", "x.yaml:9, placement[0].ranks", "a range such as 0..7", "ranks: 0..1"),
    ("[0, 1]", "1..0", "x.yaml:9, placement[0].ranks", "goes up", "ranks: 0..1"),
    ("[0, 1]", "0..9999999", "x.yaml:9, placement[0].ranks", "1048575", "replicas"),
    ("[0, 1]", "[]", "x.yaml:9, placement[0].ranks", "empty list", "ranks: [0]"),
    ("[0, 1]", "1", "x.yaml:9, placement[0].ranks", "a list", "ranks: [1]"),
    ("channel", "chanel", "x.yaml:9, placement[0].split", "found 'chanel'", "mean channel?"),
    ("channel", "{chan: 2}", "x.yaml:9, placement[0].split.chan", "allowed: batch", "channel?"),
    ("channel", "{batch: 4}", "x.yaml:9, placement[0].split", "a grid of 4", "ranks: 0..3"),
    ("channel", "{batch: true}", "x.yaml:9, placement[0].split.batch", "found true", "batch: 2"),
    ("channel", "{}", "x.yaml:9, placement[0].split", "empty grid", "split: none"),
    ("channel", "{channel: 1, input: 2}", "x.yaml:9, placement[0].split", "channel and", "its own"),
    ("channel", "[batch]", "x.yaml:9, placement[0].split", "found a list", "split: none"),
    ("channel", "", "x.yaml:9, placement[0].split", "found nothing", "split: none"),
    (": channel", ": channel, shares: [1]", "x.yaml:9, placement[0].shares", "1 shares", "[2, 1]"),
    (": channel", ": channel, shares: [1, 0]", "placement[0].shares[1]", "1 or more", "[2, 1]"),
    ("split: none", "split: none, shares: [1]", "placement[1].shares", "beside none", "remove"),
    ("channel", "batch, exchange: scatter", "placement[0].exchange", "not split by", "channel"),
    (": channel", ": channel, exchange: scatter", "placement[0].exchange", "no entry", "remove"),
    ("batch_size: 128", "batch_size: 3\nx: 1", "x.yaml:6, x", "unknown key 'x'", "remove it"),
    ("fc8,", "drop7,", "x.yaml:10, placement[1].layers", "layer drop7 here and", "earlier"),
    ("fc8,", "'f c',", "x.yaml:10, placement[1].layers", "first..last", "layers: conv1"),
    ("fc8,", "8,", "x.yaml:10, placement[1].layers", "found 8; allowed: text", "'8'"),
    ("layers: fc8, ", "", "x.yaml:10, placement[1].layers", "missing", "add layers: conv1..pool2"),
]


@pytest.mark.parametrize(("old", "new", "place", "message", "remedy"), WRONG)
def test_wrong_plans(old: str, new: str, place: str, message: str, remedy: str) -> None:
    assert old in PLAN
    error = refused(PLAN.replace(old, new, 1))
    assert place in error.location
    assert message in error.message
    assert remedy in error.remedy


def test_batch_parts_must_divide_the_microbatch() -> None:
    error = refused(PLAN.replace("channel", "batch").replace("128", "127"))
    assert "2 batch parts of a microbatch of 127" in error.message
    assert "126 or 128" in error.remedy


def test_unequal_shares_need_not_divide_it() -> None:
    text = PLAN.replace("channel", "batch, shares: [2, 1]").replace("128", "127")
    assert read_plan(text).placement[0].shares == (2, 1)


@pytest.mark.parametrize("scheme", ["gather", "broadcast", "scatter"])
@pytest.mark.parametrize("second", ["channel", "{batch: 1, channel: 2}"])
def test_exchange_after_a_batch_entry(scheme: str, second: str) -> None:
    entries = "  - {layers: conv1, ranks: [0, 1], split: batch}\n"
    entries += f"  - {{layers: fc6, ranks: [0, 1], split: {second}, exchange: {scheme}}}\n"
    text = PLAN[: PLAN.index("  - ")] + entries
    assert read_plan(text).placement[1].exchange == scheme


# Text that is no plan at all: where and what the message names.
NOT_YAML = [
    ("", "x.yaml:1", "empty"),
    ("# only a comment\n", "x.yaml:1", "empty"),
    ("- a\n", "x.yaml:1", "found a list of 1; allowed: a mapping"),
    ("hello", "x.yaml:1", "found 'hello'"),
    ("a: 1\n\tb: 2\n", "x.yaml:2:1", "\\t"),
    ("a: [1, 2\nb: 3\n", "x.yaml:2:2", "not valid YAML"),
    ("a: b: c\n", "x.yaml:1:5", "mapping values"),
    ("a: *nowhere\n", "x.yaml:1:4", "undefined alias"),
    ("a: 1\n---\nb: 2\n", "x.yaml:2:1", "another document"),
    ("a: 'x\n", "x.yaml:2:1", "end of stream"),
    ("a: 1\nb: \x00\n", "x.yaml:2:4", "U+0000"),
    ('a: "\\UFFFFFFFF"\n', "x.yaml", "not valid YAML"),
    ('a: "\\ud800"\n', "x.yaml:1, a", "half of a character"),
    ("a: !!python/object:os.system x\n", "x.yaml:1, a", "!!python/object:os.system"),
    ("a: !!set {x, y}\n", "x.yaml:1, a", "found the type !!set"),
    ("a: !!int x\n", "x.yaml:1, a", "found the type !!int"),
    ("1: 2\n", "x.yaml:1", "keys that are text"),
    ("? [a]\n: 2\n", "x.yaml:1", "keys that are text"),
    ("a: &a [*a]\n", "x.yaml", "nested more than 40 deep"),
    ("[" * 5000, "x.yaml", "nested more than 40 deep"),
]


@pytest.mark.parametrize(("text", "place", "message"), NOT_YAML)
def test_text_that_is_no_plan(text: str, place: str, message: str) -> None:
    error = refused(text)
    assert error.location.startswith(place)
    assert message in error.message
    assert error.remedy


def test_a_bomb_of_aliases_goes_off_quietly() -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    assert "unfolds to more than" in refused("\n".join(lines)).message


def test_an_honest_alias_is_read() -> None:
    text = PLAN.replace("[0, 1]", "&all [0, 1]").replace("[0], split: none", "*all, split: batch")
    assert read_plan(text).placement[1].ranks == (0, 1)


def test_several_problems_are_told_together() -> None:
    text = PLAN.replace("GPipe", "gpipe").replace("128", "-1").replace("{}", "{lrr: 1}")
    lines = str(refused(text)).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "x.yaml:5, global_batch_size",
        "  remedy",
        "x.yaml:7, schedule",
        "  remedy",
        "x.yaml:12, training.lrr",
        "  remedy",
    ]


def test_of_very_many_problems_the_first_are_told() -> None:
    error = refused(PLAN + "".join(f"k{i}: 1\n" for i in range(50)))
    assert str(error).endswith("and 45 more")


def test_yaml_1_2_scalars() -> None:
    """YAML 1.1 reads ``off`` as false, ``1e-4`` as text and ``010`` as eight."""
    text = PLAN.replace("alexnet2012", "alexnet2012, norm: off").replace("{}", "{lr: 1e-4}")
    plan = read_plan(text.replace("128", "010"))
    assert plan.model.norm == "off"
    assert plan.training.lr == 1e-4
    assert plan.global_batch_size == 10
    assert read_plan(plan.to_yaml()) == plan


def test_text_that_looks_like_something_else_is_written_in_quotes() -> None:
    for summary in (
        "1e-4",
        "no",
        "0x10",
        "012",
        "~",
        "a: b",
        " x ",
        "é\n\u2028",
        "!!x",
        "2026-01-01",
    ):
        plan = Plan(
            schema_version=1,
            name="x",
            summary=summary,
            model=ModelChoice(name="m"),
            global_batch_size=1,
            placement=(Entry(layers="a", ranks=(0,), split="none"),),
        )
        assert read_plan(plan.to_yaml()) == plan


def test_overrides_win_and_are_remembered() -> None:
    plan = read_plan(
        PLAN,
        "x.yaml",
        overrides=[
            "training.lr=0.1",
            "training.lr=0.2",
            "placement.0.split=batch",
            "model.width=0.25",
            "training.layer_batch.fc6..fc8=32",
            "summary=",
            "summary=a=b",
        ],
    )
    assert plan.training.lr == 0.2
    assert plan.placement[0].split == "batch"
    assert plan.model.width == 0.25
    assert plan.training.layer_batch == {"fc6..fc8": 32}
    assert plan.summary == "a=b"
    assert plan.location(("training", "lr")) == "--set training.lr=0.2"
    assert plan.location(("placement", 0, "split")) == "--set placement.0.split=batch"
    assert plan.location(("placement", 0, "ranks")) == "x.yaml:9, placement[0].ranks"
    assert read_plan(plan.to_yaml()) == plan


def test_an_override_may_fill_a_section_that_is_empty() -> None:
    assert read_plan(PLAN.replace("{}", ""), overrides=["training.seed=3"]).training.seed == 3
    assert read_plan(PLAN.replace("training: {}", ""), overrides=["training.seed=3"]) is not None


@pytest.mark.parametrize(
    ("override", "place", "message", "remedy"),
    [
        ("training.lrr=1", "--set training.lrr=1", "unknown key 'lrr'", "did you mean lr?"),
        ("[key]=1", "--set [key]=1", "unknown key '[key]'", "remove it"),  # once a traceback
        ("trainin.lr=1", "--set trainin.lr=1", "unknown key 'trainin'", "did you mean training?"),
        ("placement.2.split=batch", "--set placement.2.split=batch", "0 to 1", "placement=..."),
        ("placement.x=1", "--set placement.x=1", "found 'x'", "as a whole"),
        ("placement.0.split=x", "--set placement.0.split=x", "found 'x'", "split"),
        ("placement.0.split.batch=2", "--set placement.0.split.batch=2", "no keys", "as a whole"),
        ("training.lr", "--set training.lr", "KEY=VALUE", "--set training.lr=0.1"),
        ("=1", "--set =1", "KEY=VALUE", "--set training.lr=0.1"),
        ("training.lr=[", "--set training.lr=[", "not valid YAML", "brackets"),
        ("training.lr=!x 1", "--set training.lr=!x 1", "type !x", "remove"),
        ("name=\udcff", "--set name=", "U+DCFF", "UTF-8"),
    ],
)
def test_wrong_overrides(override: str, place: str, message: str, remedy: str) -> None:
    error = refused(PLAN, [override])
    assert error.location.startswith(place)
    assert message in error.message
    assert remedy in error.remedy


def test_a_part_of_an_override_is_pointed_at() -> None:
    error = refused(PLAN, ["placement.0.split={bach: 2}"])
    assert error.location == "--set placement.0.split={bach: 2}, placement[0].split.bach"


def test_equality_ignores_where_a_plan_was_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("\n\n" + PLAN)
    plan = load_plan(path)
    assert plan == read_plan(PLAN)
    assert plan != read_plan(PLAN, overrides=["training.lr=0.1"])
    assert plan != "plan"
    again = pickle.loads(pickle.dumps(plan))
    assert again.location(("name",)) == plan.location(("name",)) == f"{path}:4, name"


def test_places_of_what_was_left_out_and_of_plans_without_a_file() -> None:
    plan = read_plan(PLAN, "x.yaml")
    assert plan.location(()) == "x.yaml:1"
    assert plan.location(("placement", 1, "shares")) == "x.yaml:10, placement[1].shares"
    assert plan.location(("optimizer_sharding",)) == "x.yaml:1, optimizer_sharding"
    built = Plan.model_validate(plan.model_dump())
    assert built == plan
    assert built.location(("placement", 1)) == "plan two, placement[1]"
    assert built.location(()) == "plan two"


def test_a_models_file_lies_beside_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PLAN.replace("{name: alexnet2012}", "{file: nets/my.py, function: build}"))
    plan = load_plan(path)
    assert plan.model.file == "nets/my.py"
    assert plan.folder == tmp_path
    assert plan.model_file == tmp_path / "nets/my.py"
    assert read_plan(PLAN).model_file is None


OWN = PLAN.replace(
    "{name: alexnet2012}",
    "{file: my.py, function: build, depth: 3, width: 512, norm: null, heads: [1, 2], more: {a: 1}}",
)


def test_any_key_beside_a_models_file_is_its_option() -> None:
    """Once they were four names, of which ``width`` became a float."""
    plan = read_plan(OWN, "x.yaml", overrides=["model.depth=4", "model.act=gelu"])
    options = plan.model.options
    assert options == {
        "depth": 4, "width": 512, "norm": None, "heads": [1, 2], "more": {"a": 1}, "act": "gelu"
    }  # fmt: skip
    assert type(options["width"]) is int
    assert plan.location(("model", "depth")) == "--set model.depth=4"
    assert plan.location(("model", "width")) == "x.yaml:4, model.width"
    for again in (
        read_plan(plan.to_yaml()), Plan.model_validate(plan.model_dump()),
        pickle.loads(pickle.dumps(plan)),
    ):  # fmt: skip
        assert again == plan
        assert again.model.options == options
        assert again.to_yaml() == plan.to_yaml()
    assert read_plan(OWN) != plan


def test_the_options_of_a_built_in_model_are_known() -> None:
    assert read_plan(PLAN, overrides=["model.width=1"]).model.options == {"width": 1.0}
    for key in ("depth", "options", "_own_options"):
        error = refused(PLAN.replace("2012}", f"2012, {key}: 3}}"))
        assert f"unknown key '{key}'; allowed: name, file, function, classes" in str(error)
    near = refused(PLAN.replace("{name: alex", "{nmae: alex"))
    assert "did you mean name?" in str(near)
    assert "file alone" in str(refused(PLAN.replace("{name: alexnet2012}", "{file: f, depth: 3}")))


def test_ranks_and_world_size() -> None:
    plan = read_plan(PLAN.replace("[0, 1]", "0..7"), overrides=["replicas=4", "n_microbatches=2"])
    assert plan.placement[0].ranks == tuple(range(8))
    assert (plan.ranks_per_replica, plan.world_size, plan.microbatch_size) == (8, 32, 16)
    assert "ranks: 0..7" in plan.to_yaml()
    assert read_plan(plan.to_yaml()) == plan


def test_defaults_leave_the_recipe_alone() -> None:
    training = read_plan(PLAN).training
    assert set(training.model_dump().values()) == {None}


def test_plans_built_in_python_are_checked_alike() -> None:
    with pytest.raises(ValidationError, match="1 shares for 2 ranks"):
        Entry(layers="a", ranks=(0, 1), split="channel", shares=(2,))


def test_none_over_several_ranks_is_replicated() -> None:
    entry = read_plan(PLAN.replace("channel", "none", 1)).placement[0]
    assert (entry.ranks, entry.split, entry.grid.axes) == ((0, 1), "none", ())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\nsummary: caf\xe9\n")
    with pytest.raises(InputError, match="0xe9") as caught:
        load_plan(latin)
    assert caught.value.location.endswith("latin.yaml:2:13")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (2**20 + 1))
    for path, message in (
        (tmp_path, "this is a folder"),
        (big, "larger than 1048576 bytes"),
        (Path("/dev/zero"), "it is a device, not a file"),
        ("\0", "no plan file"),
        ("x" * 5000, "too long"),
        ("", "folder"),
    ):
        with pytest.raises(InputError, match=message):
            load_plan(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + PLAN.replace("\n", "\r\n").encode())
    assert load_plan(path) == read_plan(PLAN)


def test_a_run_folder_names_its_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    with pytest.raises(InputError) as caught:
        load_plan(tmp_path)
    assert str(tmp_path / "plan.yaml") in caught.value.remedy


def test_an_unknown_plan_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError) as caught:
        load_plan("krizhevski2012")
    assert "did you mean krizhevsky2012?" in caught.value.remedy
    assert "single" in caught.value.remedy


def test_importing_is_light() -> None:
    code = "import sys, orchestrator.plan; print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
