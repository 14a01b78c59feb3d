"""What a scene is made of: coordinates in points, y downwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Point = tuple[float, float]

INK, FAINT, BACKGROUND = "#222222", "#777777", "#F3F4F6"
SMALL, PLAIN, LARGE = 7.5, 8.5, 12.0  # text sizes
LINE_SPACING = 1.25


@dataclass(frozen=True)
class Polygon:
    """A filled outline; ``edge`` is empty for none."""

    points: tuple[Point, ...]
    fill: str
    edge: str = INK


@dataclass(frozen=True)
class Line:
    """A thin line, with a head at its end where it is an arrow."""

    points: tuple[Point, ...]
    color: str = INK
    width: float = 0.5
    head: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    """Some lines of text.

    Args:
        at: its middle, or the middle of its left side.
        boxed: white behind it, where it stands on a line.
    """

    at: Point
    text: str
    size: float = SMALL
    anchor: Literal["left", "center"] = "center"
    color: str = INK
    bold: bool = False
    boxed: bool = False

    @property
    def width(self) -> float:
        """About how wide it is."""
        return text_width(self.text, self.size)


@dataclass
class Scene:
    """What to draw: polygons and lines from back to front, then the texts."""

    width: float = 0.0
    height: float = 0.0
    shapes: list[Polygon | Line] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def text_width(text: str, size: float) -> float:
    """About how wide a text is in a wide sans-serif font such as DejaVu Sans."""
    return max(map(len, text.split("\n"))) * size * 0.61


def tint(color: str, share: float) -> str:
    """``share`` of a colour such as ``#009E73``, the rest white."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02X}" for part in parts)
