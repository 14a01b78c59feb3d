"""``compare --html``: the page in a real browser, with runs, plans and at a large size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.cli.command import SMALL, command, refused

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")
LARGE = """
schema_version: 1
name: sixty-four
model: {name: alexnet2012}
global_batch_size: 256
n_microbatches: 32
schedule: 1F1B
placement:
"""
STAGES = (
    "conv1..pool1", "conv2..pool2", "conv3..relu3", "conv4..relu4", "conv5..pool5", "fc6..drop6",
    "fc7..drop7", "fc8",
)  # fmt: skip

# The charts of a Bokeh column are views inside its view.
FIND = """
const plots = (view) => (view.repaint ? [view] : (view.child_views ?? []).flatMap(plots));
const within = (place) => [...Bokeh.index].filter((v) => place.contains(v.el)).flatMap(plots);
"""
# How many pixels of a chart's canvas are neither transparent nor grey: marks have colours.
COLOURED = (
    "() => {"
    + FIND
    + """
  return Object.fromEntries([...document.querySelectorAll("[data-chart]")]
    .filter((place) => !place.closest("[hidden]"))
    .flatMap((place) => within(place).map((plot, i) => {
      const canvas = plot.canvas_view.primary.canvas;
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      let n = 0;
      for (let k = 0; k < pixels.length; k += 4) {
        const [r, g, b, a] = pixels.subarray(k, k + 4);
        n += a > 0 && Math.max(r, g, b) - Math.min(r, g, b) > 24;
      }
      return [`${place.dataset.chart}/${i}`, n];
    })));
}"""
)
RANGES = (
    "(name) => {"
    + FIND
    + """
  return within(document.querySelector(`[data-chart="${name}"]`))
    .map((plot) => [plot.model.x_range.start, plot.model.x_range.end]);
}"""
)


@dataclass
class Opened:
    """A page, and what went wrong on it.

    Args:
        faults: errors on the console, and exceptions.
        requests: addresses that were asked for.
    """

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def is_clean(self, path: Path) -> bool:
        """Nothing went wrong, and nothing but the file was asked for."""
        return not self.faults and self.requests == [path.as_uri()]


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    contexts = []

    def open_page(path: Path, width: int = 1440, scheme: Any = "light") -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        made = Opened(context.new_page())
        made.page.on("console", lambda m: made.faults.append(m.text) if m.type == "error" else None)
        made.page.on("pageerror", lambda error: made.faults.append(str(error)))
        made.page.on("request", lambda request: made.requests.append(request.url))
        made.page.goto(path.as_uri())
        made.page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
        return made

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs, with their prediction, and a plan."""
    folder = tmp_path_factory.mktemp("compare")
    for plan in ("krizhevsky2012", "data-parallel"):
        options = ("--launcher", "local", "--steps", "3", "--out", str(folder / plan))
        assert command("run", "--plan", plan, *options, *SMALL).code == 0
    path = folder / "report.html"
    runs = (str(folder / "krizhevsky2012"), str(folder / "data-parallel"))
    ended = command(
        "compare", *runs, "pipeline-1f1b", "--cluster", "dgx1-p100", "--html", str(path), *SMALL
    )
    assert ended.code == 0
    assert str(path) in ended.out.replace("\n", "")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_drawn_without_a_request(
    opened: Open, report: Path, width: int, scheme: str
) -> None:
    made = opened(report, width, scheme)
    coloured = made.page.evaluate(COLOURED)
    kinds = {name.split("-")[0].split("/")[0] for name in coloured}
    assert kinds >= {"shares", "steps", "batch", "bandwidth", "timeline", "edges"}
    assert min(coloured.values()) > 50, coloured
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    background = made.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert made.is_clean(report), (made.faults, made.requests)


def test_the_head_says_who_wins_and_every_chart_has_titled_axes(opened: Open, report: Path) -> None:
    page = opened(report).page
    assert "times the images of" in page.inner_text("h1")
    assert "What decides is" in page.inner_text("header")
    assert "mean error" in page.inner_text("header")
    titles = page.evaluate(
        "() => {"
        + FIND
        + """
      return [...Bokeh.index].flatMap(plots).flatMap((plot) =>
        [...plot.model.below, ...plot.model.left]
          .filter((axis) => axis.visible && "axis_label" in axis.attributes)
          .map((axis) => axis.axis_label));
    }"""
    )
    assert len(titles) >= 12
    assert all(titles)


def test_zoom_of_one_timeline_is_that_of_its_partner(opened: Open, report: Path) -> None:
    made = opened(report)
    item = made.page.evaluate(
        "[...document.querySelectorAll('#item option')]"
        ".find((o) => o.text == 'krizhevsky2012').value"
    )
    made.page.select_option("#item", item)
    name = f"timeline-{item}"
    made.page.wait_for_selector("html[data-drawn]", state="attached")
    before = made.page.evaluate(RANGES, name)
    assert len(before) == 3  # measured, predicted, memory
    place = made.page.locator(f'[data-chart="{name}"]')
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box is not None
    made.page.mouse.move(box["x"] + 300, box["y"] + 110)
    made.page.mouse.down()
    made.page.mouse.move(box["x"] + 600, box["y"] + 130, steps=4)
    made.page.mouse.up()
    made.page.wait_for_timeout(200)
    after = made.page.evaluate(RANGES, name)
    assert after[0] == after[1] == after[2]
    (start, end), (first, last) = after[0], before[0]
    assert first < start < end < last
    assert made.is_clean(report), made.faults


def test_the_picker_shows_one_item_with_its_charts(opened: Open, report: Path) -> None:
    made = opened(report)
    page = made.page
    for value in ("1", "2", "0"):
        page.select_option("#item", value)
        page.wait_for_selector("html[data-drawn]", state="attached")
        visible = [e.get_attribute("data-item") for e in page.locator(".item:visible").all()]
        assert visible == [value]
        assert page.evaluate(COLOURED)[f"timeline-{value}/0"] > 50
    assert made.is_clean(report), made.faults


def test_charts_follow_a_change_of_scheme_and_print_on_white(opened: Open, report: Path) -> None:
    made = opened(report, 1440, "light")
    ink = "[...Bokeh.documents.flatMap((d) => [...d._all_models.values()])]" \
        ".find((m) => m.type == 'Legend').label_text_color"  # fmt: skip
    light = made.page.evaluate(ink)
    made.page.emulate_media(color_scheme="dark")
    for _ in range(200):  # wait_for_function evaluates a string, which the page forbids
        if made.page.evaluate(ink) != light:
            break
        made.page.wait_for_timeout(50)
    dark = made.page.evaluate(ink)
    assert dark != light
    made.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert made.page.evaluate(ink) == light
    made.page.emulate_media(media="print")
    assert not made.page.locator(".picker").is_visible()
    assert made.page.locator(".item .name").first.is_visible()
    made.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert made.page.evaluate(ink) == dark
    assert made.is_clean(report), made.faults


def test_a_large_program_is_drawn(opened: Open, tmp_path: Path) -> None:
    plan, path = tmp_path / "large.yaml", tmp_path / "large.html"
    entries = [
        f"  - {{layers: {layers}, ranks: {8 * i}..{8 * i + 7}, split: batch}}\n"
        for i, layers in enumerate(STAGES)
    ]
    plan.write_text(LARGE + "".join(entries))
    cluster = ("--cluster", "dgx-a100", "--set", "cluster.nodes=8")
    assert command("compare", str(plan), *cluster, "--html", str(path)).code == 0
    assert path.stat().st_size < 6e6
    assert "11,392 ops" in path.read_text()
    made = opened(path)
    assert made.page.evaluate(COLOURED)["timeline-0/0"] > 5000
    assert made.is_clean(path), made.faults


def test_a_page_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none" / "report.html"
    told = refused("compare", "single", "--cluster", "gtx580x2", "--html", str(path), *SMALL)
    assert "cannot write the report" in told
    assert "--html" in told
    assert not list(tmp_path.iterdir())
