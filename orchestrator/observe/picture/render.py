"""A scene as a file, by matplotlib: SVG with text as text, or PNG. Same scene, same bytes."""

from __future__ import annotations

from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patches import Polygon as Patch

from orchestrator.errors import InputError
from orchestrator.files import replacing
from orchestrator.observe.picture.shapes import LINE_SPACING, Line, Polygon, Scene

POINTS_PER_INCH = 72
PNG_DPI = 144
MOST_PIXELS = 30_000  # of a side
STYLE = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; a viewer may take another
    "svg.fonttype": "none",
    "svg.hashsalt": "orchestrator",  # of the ids in the file
    "text.parse_math": False,
}


def save(scene: Scene, path: Path) -> None:
    """Write a scene, whole or not at all.

    Raises:
        InputError: a suffix that is neither .svg nor .png.
        OSError: the file cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'}; a picture is .svg or .png",
            "--picture",
            "--picture plan.svg",
        )
    metadata = {"Date": None} if kind == "svg" else None
    with replacing(path) as file, style.context(["default", STYLE]):
        drawn = figure(scene)
        dpi = min(PNG_DPI, MOST_PIXELS / max(drawn.get_size_inches()))
        drawn.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def figure(scene: Scene) -> Figure:
    """A scene on a figure of its own, with no window behind it."""
    found = Figure(figsize=(scene.width / POINTS_PER_INCH, scene.height / POINTS_PER_INCH))
    axes = found.add_axes((0, 0, 1, 1), xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.set_axis_off()
    for depth, shape in enumerate(scene.shapes):
        if isinstance(shape, Polygon):
            edge = shape.edge or "none"
            patch = Patch(shape.points, facecolor=shape.fill, edgecolor=edge, linewidth=0.6)
            patch.set(zorder=depth, joinstyle="round")
            axes.add_patch(patch)
        else:
            _line(axes, shape, depth)
    for text in scene.texts:
        axes.text(
            *text.at, text.text, fontsize=text.size, color=text.color, linespacing=LINE_SPACING,
            ha=text.anchor, va="center", weight="bold" if text.bold else "normal",
            zorder=len(scene.shapes), clip_on=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if text.boxed else None,
        )  # fmt: skip
    return found


def _line(axes: Axes, line: Line, depth: int) -> None:
    if line.head:
        axes.add_patch(
            FancyArrowPatch(
                line.points[0],
                line.points[-1],
                arrowstyle="-|>",
                mutation_scale=7,
                shrinkA=0,
                shrinkB=0,
                color=line.color,
                linewidth=line.width,
                zorder=depth,
            )  # fmt: skip
        )
    else:
        axes.plot(
            *zip(*line.points, strict=True), color=line.color, linewidth=line.width, zorder=depth,
            linestyle=(0, (3, 2)) if line.dashed else "-",
        )  # fmt: skip
