"""Predicted numbers: three digits, and a mark where they rest on assumed figures."""

from __future__ import annotations

import json
import re

import pytest

from orchestrator.cli.figures import duration, footnote, seconds, share, three_digits
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.assumed import Assumed, assumed_behind
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.predict import simulate
from tests.cli.command import command

# Figures of gtx580x2 that are assumed, set so that they have a source.
SOURCED = {
    "device.efficiency.conv": 0.35, "device.efficiency.linear": 0.5,
    "device.efficiency.memory": 0.7, "device.kernel_overhead_us": 10,
    "device.update_accesses": 9, "network.0.GBps": 6.0, "network.0.latency_us": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.50123, "0.501"), (9.996, "10.0"), (12.345, "12.3"), (999.6, "1,000"),
        (1234567.8, "1,230,000"), (0.0012345, "0.00123"), (1e-9, "1e-09"), (1.2345e18, "1.23e+18"),
        (-0.50123, "-0.501"), (100.0, "100"),
    ],
)  # fmt: skip
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_units() -> None:
    assert [seconds(x) for x in (12.345, 0.0999, 0.0, -1e-18)] == [
        "12.3 s", "99.9 ms", "0 ms", "0 ms",
    ]  # fmt: skip
    assert [duration(x) for x in (119.0, 5016.4, 90_000, 451_234)] == [
        "119 s", "83.6 min", "25.0 h", "5.22 days",
    ]  # fmt: skip
    assert [share(x) for x in (0.99951, 0.9666, -1e-18)] == ["100%", "96.7%", "0.0%"]


def test_a_footnote_names_some_keys() -> None:
    assert footnote("c", []) == ""
    assert footnote("c", ["a", "b"]) == "~ rests on figures that c assumes: a, b"
    assert footnote("c", list("abcde")).endswith("a, b, c and 2 more (assumed in --json)")


def behind(plan_name: str, cluster_name: str, *settings: str) -> Assumed:
    plan, cluster = load_plan(plan_name), load_cluster(cluster_name, settings)
    return assumed_behind(cluster, simulate(plan, model_of(plan), cluster))


def test_which_figures_a_prediction_rests_on() -> None:
    """Only what it uses: no link that nothing crosses, no price where time is asked for."""
    alone, two = behind("single", "gtx580x2"), behind("krizhevsky2012", "gtx580x2")
    assert "device.efficiency.conv" in alone.time
    assert not any(key.startswith("network") for key in alone.time)
    assert {*two.time} - {*alone.time} == {"network[0].GBps", "network[0].latency_us"}
    assert {*two.dollars} - {*two.time} == {"device.dollars_per_hour"}
    assert two.energy == two.time  # the power has a source
    assert two.goodput == tuple(
        f"reliability.{key}" for key in ("mtbf_hours_per_device", "restart_s", "checkpoint_s")
    )
    one_node = behind("data-parallel", "dgx-a100", "nodes=2")
    assert not any(key.startswith("network[1]") for key in one_node.time)
    # the images of k20x8 come over its links
    assert "network[1].GBps" in behind("single", "k20x8").time
    sourced = [f"{key}={value}" for key, value in SOURCED.items()]
    assert behind("krizhevsky2012", "gtx580x2", *sourced).time == ()


def test_simulate_prints_no_more_digits_than_they_are_worth() -> None:
    """A prediction from a data sheet once had nine: ``12,345.6 images/s``."""
    out = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2").out
    assert re.search(r"a step takes ~0\.\d{3} s: ~\d{3} images/s", out)
    assert re.search(r"an epoch of .*~\d\d\.\d min", out)
    assert re.search(r"~ rests on figures that gtx580x2 assumes: device\.efficiency\.conv, ", out)
    counted = re.compile(r"30,015,488|60,030,976|gtx580x2|krizhevsky2012|1,281,167|10,009 steps")
    for number in re.findall(r"\d[\d.,]*\d", counted.sub("", out)):
        assert len(number.replace(",", "").replace(".", "").strip("0")) <= 3, number


def test_what_has_sources_is_not_marked() -> None:
    settings = [x for key, value in SOURCED.items() for x in ("--set", f"cluster.{key}={value}")]
    ended = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", *settings)
    assert re.search(r"a step takes 0\.\d{3} s: \d{3} images/s", ended.out)
    assert re.search(r"failures and checkpoints +~99\.9%", ended.out)


def test_compare_marks_what_is_assumed() -> None:
    arguments = ("compare", "single", "krizhevsky2012", "--cluster", "gtx580x2")
    out = command(*arguments).out
    assert re.search(r"krizhevsky2012 +predicted +~0\.\d{3} s +~\d{3} ", out)
    assert "~ rests on figures that gtx580x2 assumes: " in out
    items = {item["name"]: item for item in json.loads(command(*arguments, "--json").out)["items"]}
    assert "network[0].GBps" in items["krizhevsky2012"]["assumed"]
    assert "network[0].GBps" not in items["single"]["assumed"]
    assert len(str(items["single"]["predicted"]["step_time_s"])) > 10  # all digits
