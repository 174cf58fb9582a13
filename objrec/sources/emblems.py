"""Figures for class names that the sample source has no drawing of: an emblem derived from the name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from objrec.sources.drawings import Color, Pen, Point, Random, hsv, shade

OUTLINES = (
    "disc",
    "triangle",
    "square",
    "pentagon",
    "star",
    "burst",
    "cross",
    "drop",
    "heart",
    "flower",
    "arrow",
    "moon",
)
PATTERNS = ("plain", "stripes", "dots", "rings", "halves")


def emblem(name: str) -> Callable[[Pen, Random], None]:
    """Return a drawing for ``name``: outline, pattern, colour and crown follow from its hash, pose and tint vary."""
    digest = hashlib.sha256(name.encode()).digest()
    outline = OUTLINES[digest[0] % len(OUTLINES)]
    pattern = PATTERNS[digest[1] % len(PATTERNS)]
    hue, crown, size = digest[2] / 256, digest[3] % 4, 0.62 + 0.3 * digest[4] / 255

    def draw(pen: Pen, rng: Random) -> None:
        tint = hue + rng.normal(0, 0.05)
        color = hsv(tint, rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.95))
        contrast = hsv(tint + 0.45, rng.uniform(0.3, 0.8), rng.uniform(0.6, 1.0))
        for i in range(crown):  # leaves or feelers on top tell two discs apart
            turn = (i - (crown - 1) / 2) * 0.6
            tip = (1.15 * math.sin(turn), -1.15 * math.cos(turn))
            pen.line([(0.0, -0.3), tip], 0.1, shade(contrast, 0.6))
            pen.ellipse(*tip, 0.13, 0.13, contrast)
        points = [(x * size, y * size) for x, y in _outline(outline)]
        pen.polygon([(1.12 * x, 1.12 * y) for x, y in points], shade(color, 0.4))
        pen.polygon(points, color)
        _pattern(pen, pattern, size * 0.55, contrast)

    return draw


def _outline(kind: str) -> list[Point]:
    angle = np.linspace(-math.pi / 2, 1.5 * math.pi, 60, endpoint=False)
    corners = {"triangle": 3, "square": 4, "pentagon": 5}.get(kind)
    if corners:
        radius = np.cos(math.pi / corners) / np.cos((angle + math.pi / 2) % (2 * math.pi / corners) - math.pi / corners)
    elif kind in ("star", "burst"):
        count = 5 if kind == "star" else 11
        wave = np.abs(((angle + math.pi / 2) * count / (2 * math.pi)) % 1 - 0.5) * 2
        radius = 0.45 + 0.55 * wave if kind == "star" else 0.7 + 0.3 * wave
    elif kind == "flower":
        radius = 0.72 + 0.28 * np.cos(6 * angle)
    elif kind == "drop":
        radius = 0.55 + 0.45 * np.exp(-3 * (1 + np.sin(angle)))
    else:
        radius = np.ones_like(angle)
    fixed: dict[str, list[Point]] = {
        "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1),
                  (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        "arrow": [(0, -1), (0.9, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-0.9, 0)],
        "moon": [(math.cos(a), math.sin(a)) for a in np.linspace(0.9, 5.4, 24)]
        + [(0.4 + 0.7 * math.cos(a), 0.7 * math.sin(a)) for a in np.linspace(5.0, 1.3, 24)],
    }  # fmt: skip
    if kind == "heart":
        t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        x = np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        return list(zip(x.tolist(), y.tolist(), strict=True))
    if kind in fixed:
        return fixed[kind]
    return list(zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle)).tolist(), strict=True))


def _pattern(pen: Pen, kind: str, extent: float, color: Color) -> None:
    if kind == "stripes":
        for y in np.linspace(-extent, extent, 4).tolist():
            pen.line([(-extent * 0.8, y), (extent * 0.8, y)], 0.1, color)
    elif kind == "dots":
        for x, y in ((-0.6, -0.5), (0.6, -0.5), (0, 0), (-0.6, 0.5), (0.6, 0.5)):
            pen.ellipse(x * extent, y * extent, 0.11, 0.11, color)
    elif kind == "rings":
        pen.ellipse(0, 0, extent * 0.9, extent * 0.9, color)
        pen.ellipse(0, 0, extent * 0.55, extent * 0.55, shade(color, 0.5))
    elif kind == "halves":
        pen.polygon([(0, -extent), (extent * 0.9, 0), (0, extent)], color)
