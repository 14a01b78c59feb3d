"""A picture as a file: any plan, nothing on top of another, the same bytes every time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from matplotlib.path import Path as Outline
from matplotlib.transforms import Bbox
from PIL import Image

from orchestrator.errors import InputError
from orchestrator.observe.picture import draw_program
from orchestrator.observe.picture.labels import short_bytes
from orchestrator.observe.picture.layout import lay_out
from orchestrator.observe.picture.render import figure, save
from orchestrator.observe.picture.scene import compose
from orchestrator.observe.picture.shapes import BACKGROUND, Polygon, Scene
from orchestrator.plan import load_plan, read_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.resolve import model_of
from tests.execute.test_random_plans import MODELS, plan_texts

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
GRID = """
schema_version: 1
name: grid
model: {name: alexnet2012, classes: 1024}
global_batch_size: 128
placement:
  - {layers: conv1..fc8, ranks: 0..63, split: {batch: 8, channel: 8}}
"""
STAGES = """
schema_version: 1
name: stages
model: {name: alexnet2012, classes: 1024}
global_batch_size: 128
n_microbatches: 8
placement:
  - {layers: conv1..pool1, ranks: 0..7, split: batch}
  - {layers: conv2..pool2, ranks: 8..23, split: channel}
  - {layers: conv3..pool5, ranks: 24..39, split: channel}
  - {layers: fc6..fc8, ranks: 40..55, split: channel}
"""


def shipped(name: str, *overrides: str) -> Program:
    plan = load_plan(name, list(overrides))
    return compile_plan(plan, model_of(plan))


def written(text: str) -> Program:
    plan = read_plan(text, "t.yaml")
    return compile_plan(plan, model_of(plan))


def texts(file: Path) -> list[str]:
    """Every text of an SVG, in order."""
    root = ElementTree.parse(file).getroot()
    return ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]


def clashes(scene: Scene) -> list[str]:
    """Texts that lie on another text, on a block, or outside of the picture."""
    drawn = figure(scene)
    (axes,) = drawn.axes
    to_scene = axes.transData.inverted()
    # A pixel of 1/100 inch at each side is white around the letters.
    boxes = [
        (text.get_text(), text.get_window_extent().padded(-1).transformed(to_scene))
        for text in axes.texts
    ]
    blocks = [
        Outline(shape.points)
        for shape in scene.shapes
        if isinstance(shape, Polygon) and shape.fill != BACKGROUND
    ]
    whole = Bbox.from_extents(0, 0, scene.width, scene.height)
    found = [f"{a!r} on {b!r}" for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]
    found += [
        f"{text!r} on a block"
        for text, box in boxes
        if any(block.intersects_bbox(box) for block in blocks)
    ]
    return found + [
        f"{text!r} outside"
        for text, box in boxes
        if not (whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1))
    ]


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_no_text_of_a_shipped_plan_lies_on_another(name: str) -> None:
    assert clashes(compose(lay_out(shipped(name)))) == []


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda: written(GRID), id="grid"),
        pytest.param(lambda: written(STAGES), id="stages"),
        pytest.param(lambda: shipped("krizhevsky2012", "replicas=32"), id="replicas"),
        pytest.param(lambda: shipped("data-parallel", "placement.0.ranks=0..63"), id="data"),
        pytest.param(lambda: shipped("pipeline-x-data", "replicas=32"), id="pipelines"),
    ],
)
def test_tens_of_ranks_are_some_rows_with_no_text_on_another(
    program: Callable[[], Program],
) -> None:
    picture = lay_out(program())
    assert picture.world_size >= 56
    assert len(picture.rows) <= 8
    assert clashes(compose(picture)) == []


@pytest.mark.slow
@settings(max_examples=60)
@given(plan_texts())
def test_any_plan_that_compiles_is_drawn(drawn: tuple[str, str]) -> None:
    text, name = drawn
    try:
        program = compile_plan(read_plan(text, "drawn.yaml"), MODELS[name])
    except InputError:
        return
    assert clashes(compose(lay_out(program))) == [], text


def test_an_svg_is_xml_and_its_labels_are_text(tmp_path: Path) -> None:
    file = tmp_path / "k.svg"
    draw_program(shipped("krizhevsky2012"), file)
    found = texts(file)
    # fc6 and fc7 of both ranks; 11,075,584 bytes before conv3 each way, and so on.
    for label, count in (
        ("krizhevsky2012", 1), ("conv3", 1), ("55×55×48", 2), ("13×13×192", 4), ("2048", 4),
        ("1000", 1), ("11.1 MB", 2), ("2.36 MB", 2), ("1.05 MB", 3),
    ):  # fmt: skip
        assert found.count(label) == count, label
    (totals,) = (text for text in found if "60,030,976" in text)
    assert "0 of gradients" in totals


def test_a_png_opens(tmp_path: Path) -> None:
    file = tmp_path / "K.PNG"
    draw_program(shipped("krizhevsky2012"), file)
    with Image.open(file) as image:
        assert image.format == "PNG"
        image.load()
        assert image.width > 1000


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_plan_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{i}.{suffix}" for i in range(2))
    for file in (first, second):
        draw_program(shipped("krizhevsky2012"), file)
    assert first.read_bytes() == second.read_bytes()


def test_the_picture_in_the_documentation_is_todays(tmp_path: Path) -> None:
    file = tmp_path / "k.svg"
    draw_program(shipped("krizhevsky2012"), file)
    shown = ROOT / "docs" / "images" / "krizhevsky2012.svg"
    assert texts(shown) == texts(file)


def test_a_very_tall_picture_has_fewer_pixels_not_more_than_a_file_can(tmp_path: Path) -> None:
    scene = Scene(600, 40_000)
    save(scene, tmp_path / "tall.png")
    with Image.open(tmp_path / "tall.png") as image:
        assert max(image.size) <= 30_000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
        (99_960, "100 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (11_075_584, "11.1 MB"),
        (10**16, "10000 TB"),
    ],
)  # fmt: skip
def test_bytes_have_three_figures(count: int, text: str) -> None:
    assert short_bytes(count) == text
