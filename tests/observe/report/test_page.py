"""The page as text: what comes from files is escaped, and the file is whole or not there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.observe.palette import SHARE_NAMES
from orchestrator.observe.report.description import Fact, Report, ReportItem, Step
from orchestrator.observe.report.page import duration, render, size, write
from orchestrator.observe.report.step_charts import ranges, timelines
from tests.observe.test_accounting import STAGED
from tests.observe.timelines import PROGRAMS, step_times

TIMING = {
    "step_time_s": 0.5, "compute_time_s": 0.25, "communication_time_s": 0.25,
    "exposed_communication_time_s": 0.25, "wait_time_s": 0.0, "bubble_time_s": 0.0,
    "loading_time_s": 0.0, "other_time_s": 0.0, "images_per_s": 8.0, "bytes_sent": 2048,
    "peak_memory_bytes": 2**30,
}  # fmt: skip
EVIL = '</script><script>alert("x")</script>'
ITEM = ReportItem(
    name="small", about="", batch=4, predicted=TIMING, measured=None, error_ratio=None, fits=True,
    steps=(), pairs=(), worst=(), memory=(), room_bytes=None, facts=(), notes=(),
)  # fmt: skip
REPORT = Report(
    verdict="small wins.", because=(), items=(ITEM,), batch=(), bandwidth=(), agreement="",
    facts=(), figures=(),
)  # fmt: skip


def test_names_and_facts_are_escaped() -> None:
    item = replace(ITEM, name=EVIL, about=EVIL, facts=(Fact(EVIL, EVIL),), notes=(EVIL,))
    page = render(replace(REPORT, verdict=EVIL, because=(EVIL,), items=(item,)))
    assert "alert(" in page
    assert EVIL not in page
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page)) == 3
    charts = page.split('<script type="application/json" id="charts">')[1].split("</script>")[0]
    assert EVIL in json.dumps(json.loads(charts)).replace('\\"', '"')


def test_nothing_is_to_be_fetched() -> None:
    page = render(REPORT)
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:link|img|script)[^>]+(?:href|src)=\"(?!data:)", page)


def drawn(step: Step) -> dict[str, Any]:
    """The bars of a timeline, by the name in its legend."""
    made: Any = timelines(replace(ITEM, steps=(step,))).children[0]
    return {item.label.value: item.renderers[0] for item in made.legend[0].items}


def test_a_wait_for_data_is_drawn_before_the_computation_that_reads_it() -> None:
    program = PROGRAMS["stages"]
    (forward,) = (op.id for op in program.rank_ops(0) if str(op) == "0F1")
    times = replace(step_times(program, STAGED, {0: 15, 1: 13}), loading={forward: (1.5, 2.0)})
    bars = drawn(Step("Measured", program, times))
    data = bars["waiting for data"].data_source.data
    assert [list(data[key]) for key in ("left", "right", "rank")] == [[1500], [2000], [0]]
    assert list(data["op"]) == ["data of 0F1"]
    forwards = bars["forward"].data_source.data
    assert set(data["y"]) < set(forwards["y"]), "in the row of the rank's computation"
    without = drawn(Step("Predicted", program, replace(times, loading={})))
    assert bars.keys() - without.keys() == {"waiting for data"}


def test_the_table_and_the_bars_have_all_parts_of_a_step() -> None:
    page = render(REPORT)
    assert set(SHARE_NAMES) == {key for key in TIMING if key in SHARE_NAMES}
    for name in SHARE_NAMES.values():
        assert f"</span>{name}</th>" in page
    charts = page.split('<script type="application/json" id="charts">')[1].split("</script>")[0]
    assert '"waiting for data"' in charts


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(path, REPORT)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    blocked = tmp_path / "folder"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write the report"):
        write(blocked, REPORT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "report.html"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(12345.0, "12,345 s"), (1.234, "1.23 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_sizes_and_ranges() -> None:
    assert [size(n) for n in (12, 2048, 3 * 2**20, 2**30)] == ["12 B", "2 KiB", "3 MiB", "1 GiB"]
    assert ranges([0, 1, 2, 3, 8, 9, 11]) == "0-3, 8, 9, 11"
