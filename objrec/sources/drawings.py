"""Figures of the sample source: what a cat, a ship or an unknown name looks like, drawn in a unit square."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from PIL import ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]
Random = np.random.Generator

WHITE: Final[Color] = (238, 238, 236)
BLACK: Final[Color] = (26, 24, 26)
GLASS: Final[Color] = (150, 190, 214)


class Pen:
    """Draws in object coordinates: x to the right and y down, the figure within about [-1, 1].

    Args:
        draw: the canvas.
        matrix: 2 x 3, from object coordinates to pixels.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, matrix: np.ndarray) -> None:
        self._draw = draw
        self._linear, self._offset = matrix[:, :2], matrix[:, 2]
        self.unit = math.sqrt(abs(float(np.linalg.det(self._linear))))  # pixels per object unit

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        placed = np.asarray(points, dtype=np.float64) @ self._linear.T + self._offset
        self._draw.polygon([tuple(p) for p in placed.tolist()], fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, *, turn: float = 0.0) -> None:
        """``turn`` in radians."""
        angle = np.linspace(0, 2 * math.pi, 22, endpoint=False)
        dx, dy = rx * np.cos(angle), ry * np.sin(angle)
        c, s = math.cos(turn), math.sin(turn)
        self.polygon(np.stack([x + c * dx - s * dy, y + s * dx + c * dy], axis=1).tolist(), fill)

    def line(self, points: Sequence[Point], width: float, fill: Color) -> None:
        placed = np.asarray(points, dtype=np.float64) @ self._linear.T + self._offset
        pixels = max(1, round(width * self.unit))
        self._draw.line([tuple(p) for p in placed.tolist()], fill=fill, width=pixels, joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)


def hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(color: Color, factor: float) -> Color:
    """``factor`` below 1 darkens, above 1 lightens."""
    red, green, blue = (min(255, max(0, round(c * factor))) for c in color)
    return red, green, blue


def paint(rng: Random) -> Color:
    """A colour of man-made things: any hue, or white, grey, black."""
    if rng.random() < 0.35:
        return hsv(0.6, 0.06, rng.uniform(0.15, 0.97))
    return hsv(rng.random(), rng.uniform(0.45, 0.95), rng.uniform(0.4, 0.95))


def fur(rng: Random) -> Color:
    """A colour of animals: browns, greys, sand, black, white."""
    if rng.random() < 0.4:
        return hsv(0.08, 0.08, rng.uniform(0.15, 0.95))
    return hsv(rng.uniform(0.03, 0.11), rng.uniform(0.3, 0.75), rng.uniform(0.3, 0.9))


def airplane(pen: Pen, rng: Random) -> None:
    body, trim = paint(rng) if rng.random() < 0.4 else shade(WHITE, rng.uniform(0.75, 1.0)), paint(rng)
    if rng.random() < 0.5:  # from the side
        pen.polygon([(-0.1, -0.05), (0.25, -0.05), (-0.05, -0.42), (-0.2, -0.42)], shade(body, 0.75))
        pen.polygon([(-0.95, -0.12), (-0.62, -0.12), (-0.8, -0.6), (-1.0, -0.6)], trim)
        pen.ellipse(0, 0, 1.0, 0.17, body)
        pen.polygon([(0.1, 0.03), (0.4, 0.03), (-0.15, 0.52), (-0.35, 0.52)], shade(body, 0.82))
        pen.polygon([(-0.95, -0.02), (-0.68, -0.02), (-0.98, 0.16), (-1.12, 0.16)], shade(body, 0.8))
        for x in np.arange(-0.55, 0.6, 0.16):
            pen.ellipse(float(x), -0.05, 0.035, 0.035, BLACK)
        pen.polygon([(0.72, -0.11), (0.88, -0.06), (0.74, -0.04)], GLASS)
    else:  # from below
        sweep = rng.uniform(0.15, 0.5)
        for side in (-1, 1):
            wing = [(0.3, 0.08 * side), (-0.1, 0.08 * side), (-0.1 - sweep, 0.95 * side), (0.08 - sweep, 0.95 * side)]
            pen.polygon(wing, shade(body, 0.82))
            tail = [(-0.7, 0.05 * side), (-0.92, 0.05 * side), (-1.05, 0.38 * side), (-0.92, 0.38 * side)]
            pen.polygon(tail, trim)
            pen.ellipse(0.12 - sweep / 2, 0.42 * side, 0.14, 0.06, shade(body, 0.55))
        pen.ellipse(0, 0, 1.0, 0.13, body)
        pen.ellipse(0.85, 0, 0.08, 0.07, BLACK)


def _wheels(pen: Pen, centres: Sequence[float], y: float, radius: float) -> None:
    for x in centres:
        pen.ellipse(x, y, radius, radius, BLACK)
        pen.ellipse(x, y, radius * 0.5, radius * 0.5, (168, 168, 170))


def automobile(pen: Pen, rng: Random) -> None:
    body = paint(rng)
    roof, back, front = rng.uniform(-0.52, -0.38), rng.uniform(-0.75, -0.5), rng.uniform(0.42, 0.58)
    cabin = [(back, -0.08), (back + 0.2, roof), (front - 0.32, roof), (front, -0.08)]
    pen.polygon(cabin, shade(body, 0.85))
    pen.polygon(
        [(-1, 0.3), (-0.98, -0.02), (-0.85, -0.1), (0.6, -0.1), (0.92, -0.01), (1, 0.12), (1, 0.3)],
        body,
    )
    middle = (back + front) / 2
    pen.polygon(
        [(back + 0.12, -0.1), (back + 0.25, roof + 0.06), (middle - 0.04, roof + 0.06), (middle - 0.04, -0.1)], GLASS
    )
    pen.polygon(
        [(middle + 0.04, -0.1), (middle + 0.04, roof + 0.06), (front - 0.36, roof + 0.06), (front - 0.1, -0.1)], GLASS
    )
    pen.ellipse(0.93, 0.06, 0.06, 0.05, (250, 236, 160))
    pen.box(-1.0, 0.02, -0.93, 0.12, (190, 30, 30))
    pen.line([(middle, -0.08), (middle, 0.26)], 0.02, shade(body, 0.6))
    _wheels(pen, (-0.58, 0.58), 0.32, 0.21)


def truck(pen: Pen, rng: Random) -> None:
    cab, load = paint(rng), paint(rng)
    top = rng.uniform(-0.78, -0.6)
    pen.box(-1.05, top, 0.38, 0.28, load)
    if rng.random() < 0.6:
        for x in np.linspace(-0.9, 0.25, 6):
            pen.line([(float(x), top + 0.05), (float(x), 0.24)], 0.025, shade(load, 0.72))
    else:
        pen.box(-0.8, top + 0.2, 0.15, top + 0.5, shade(load, 1.5))
    pen.box(-1.05, 0.24, 1.0, 0.36, shade(BLACK, 1.8))
    pen.polygon([(0.44, 0.3), (0.44, -0.42), (0.8, -0.42), (1.0, -0.06), (1.0, 0.3)], cab)
    pen.polygon([(0.56, -0.06), (0.56, -0.34), (0.77, -0.34), (0.92, -0.06)], GLASS)
    pen.ellipse(0.97, 0.16, 0.05, 0.05, (250, 236, 160))
    _wheels(pen, (-0.82, -0.42, 0.7), 0.4, 0.2)


def ship(pen: Pen, rng: Random) -> None:
    hull, trim = paint(rng), paint(rng)
    pen.polygon([(-1.0, 0.02), (1.05, -0.06), (0.75, 0.45), (-0.8, 0.45)], hull)
    pen.polygon([(-0.88, 0.3), (0.86, 0.28), (0.75, 0.45), (-0.8, 0.45)], shade(hull, 0.55))
    if rng.random() < 0.5:  # a sailing ship
        pen.line([(0.0, 0.0), (0.0, -1.0)], 0.05, (92, 66, 42))
        sail = shade(WHITE, rng.uniform(0.8, 1.0)) if rng.random() < 0.6 else trim
        pen.polygon([(0.05, -0.95), (0.05, -0.12), (0.78, -0.12)], sail)
        pen.polygon([(-0.06, -0.85), (-0.06, -0.12), (-0.62, -0.12)], shade(sail, 0.86))
    else:  # a steamer
        pen.box(-0.6, -0.3, 0.42, 0.02, WHITE)
        pen.box(-0.42, -0.5, 0.2, -0.28, shade(WHITE, 0.9))
        for x in (-0.22, 0.04):
            pen.box(x, -0.85, x + 0.15, -0.48, trim)
            pen.box(x, -0.85, x + 0.15, -0.75, BLACK)
        for x in np.arange(-0.5, 0.4, 0.17):
            pen.ellipse(float(x), -0.14, 0.045, 0.045, BLACK)
    for x in np.arange(-1.15, 1.2, 0.3):  # the bow wave
        pen.ellipse(float(x), 0.47, 0.19, 0.05, shade((170, 205, 222), rng.uniform(0.8, 1.1)))


def bird(pen: Pen, rng: Random) -> None:
    body = hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.35, 0.95)) if rng.random() < 0.6 else fur(rng)
    beak = hsv(rng.uniform(0.06, 0.13), 0.85, 0.9)
    if rng.random() < 0.55:  # perched
        for x in (-0.1, 0.12):
            pen.line([(x, 0.4), (x + 0.02, 0.78), (x + 0.14, 0.8)], 0.045, shade(beak, 0.8))
        pen.polygon([(-0.45, 0.1), (-1.05, 0.42), (-0.95, 0.58), (-0.3, 0.4)], shade(body, 0.7))
        pen.ellipse(0, 0.15, 0.58, 0.36, body, turn=-0.35)
        pen.ellipse(0.08, 0.26, 0.34, 0.2, shade(body, 1.35), turn=-0.35)
        pen.ellipse(-0.14, 0.12, 0.4, 0.19, shade(body, 0.65), turn=0.25)
    else:  # in flight
        lift = rng.uniform(0.5, 0.95)
        pen.polygon([(-0.2, 0.0), (0.2, 0.0), (-0.1, -lift), (-0.45, -lift * 0.95)], shade(body, 0.65))
        pen.polygon([(-0.4, 0.1), (-0.98, -0.05), (-0.98, 0.25)], shade(body, 0.7))
        pen.ellipse(0.02, 0.08, 0.55, 0.22, body, turn=-0.15)
        pen.polygon([(-0.1, 0.05), (0.3, 0.0), (0.15, lift * 0.85), (-0.2, lift * 0.8)], shade(body, 0.8))
    pen.polygon([(0.68, -0.26), (1.02, -0.14), (0.68, -0.08)], beak)
    pen.ellipse(0.5, -0.18, 0.25, 0.22, body)
    pen.ellipse(0.57, -0.23, 0.055, 0.055, BLACK)


def cat(pen: Pen, rng: Random) -> None:
    coat = fur(rng)
    stripe, eye = shade(coat, 0.55), hsv(rng.uniform(0.13, 0.4), 0.8, 0.85)
    curl = [(0.35, 0.85), (0.75, 0.75), (0.85, 0.4), (0.7, 0.15), (0.8, 0.0)]
    pen.line(curl, 0.14, shade(coat, 0.8))
    pen.ellipse(0, 0.58, 0.46, 0.46, shade(coat, 0.9))
    for x in (-0.18, 0.18):
        pen.ellipse(x, 0.92, 0.14, 0.12, coat)
        pen.line([(x, 0.5), (x, 0.9)], 0.16, coat)
    for side in (-1, 1):
        pen.polygon([(0.5 * side, -0.3), (0.48 * side, -0.92), (0.06 * side, -0.6)], coat)
        pen.polygon([(0.42 * side, -0.42), (0.41 * side, -0.75), (0.16 * side, -0.56)], (214, 150, 150))
    pen.ellipse(0, -0.22, 0.52, 0.44, coat)
    if rng.random() < 0.6:
        for x in (-0.14, 0.0, 0.14):
            pen.line([(x, -0.62), (x * 0.7, -0.42)], 0.05, stripe)
    for side in (-1, 1):
        pen.ellipse(0.2 * side, -0.27, 0.11, 0.1, eye)
        pen.ellipse(0.2 * side, -0.27, 0.035, 0.095, BLACK)
        for dy in (-0.06, 0.02, 0.1):
            pen.line([(0.14 * side, -0.06), (0.72 * side, -0.08 + dy)], 0.018, shade(WHITE, 0.95))
    pen.ellipse(0, -0.01, 0.12, 0.08, shade(coat, 1.3))
    pen.polygon([(-0.07, -0.12), (0.07, -0.12), (0, -0.04)], (200, 110, 120))


def _legs(pen: Pen, rng: Random, at: Sequence[float], top: float, foot: float, width: float, color: Color) -> None:
    for i, x in enumerate(at):
        stride = rng.uniform(-0.12, 0.12)
        pen.line(
            [(x, top), (x + stride * 0.3, (top + foot) / 2), (x + stride, foot)],
            width,
            shade(color, 0.7 + 0.15 * (i % 2)),
        )


def dog(pen: Pen, rng: Random) -> None:
    coat = fur(rng)
    patch = shade(coat, 0.5) if rng.random() < 0.7 else shade(coat, 1.5)
    wag = rng.uniform(-0.6, -0.3)
    pen.line([(-0.6, 0.05), (-0.85, -0.2), (-0.9, wag)], 0.13, shade(coat, 0.85))
    _legs(pen, rng, (-0.52, -0.36, 0.3, 0.46), 0.3, 0.88, 0.16, coat)
    pen.ellipse(-0.05, 0.17, 0.66, 0.28, coat)
    if rng.random() < 0.6:
        pen.ellipse(-0.2, 0.08, 0.25, 0.15, patch)
    pen.polygon([(0.3, 0.2), (0.35, -0.35), (0.7, -0.2), (0.58, 0.25)], coat)
    pen.ellipse(0.58, -0.34, 0.32, 0.28, coat)
    pen.ellipse(0.86, -0.24, 0.24, 0.14, shade(coat, 1.12))
    pen.ellipse(1.06, -0.3, 0.07, 0.06, BLACK)
    if rng.random() < 0.5:
        pen.ellipse(0.9, -0.06, 0.06, 0.12, (214, 96, 110))
    pen.ellipse(0.4, -0.24, 0.12, 0.3, patch, turn=0.2)
    pen.ellipse(0.64, -0.42, 0.05, 0.05, BLACK)
    pen.line([(0.36, -0.02), (0.64, 0.06)], 0.07, paint(rng))


def horse(pen: Pen, rng: Random) -> None:
    coat = fur(rng)
    mane = shade(coat, 0.4) if rng.random() < 0.7 else shade(WHITE, 0.9)
    pen.line([(-0.66, -0.1), (-0.9, 0.1), (-0.92, 0.55)], 0.16, mane)
    _legs(pen, rng, (-0.55, -0.42, 0.32, 0.45), 0.2, 0.95, 0.12, coat)
    pen.ellipse(-0.06, 0.05, 0.68, 0.3, coat)
    pen.ellipse(-0.42, 0.0, 0.33, 0.3, coat)
    pen.polygon([(0.22, 0.15), (0.34, -0.35), (0.62, -0.78), (0.86, -0.6), (0.72, -0.2), (0.58, 0.2)], coat)
    pen.line([(0.56, -0.86), (0.4, -0.55), (0.28, -0.25), (0.18, -0.1)], 0.17, mane)
    pen.polygon([(0.58, -0.82), (0.8, -0.82), (1.12, -0.42), (1.02, -0.28), (0.86, -0.36), (0.66, -0.56)], coat)
    pen.ellipse(1.05, -0.37, 0.09, 0.1, shade(coat, 0.7))
    pen.polygon([(0.6, -0.78), (0.63, -1.02), (0.73, -0.8)], shade(coat, 0.85))
    pen.ellipse(0.78, -0.68, 0.04, 0.04, BLACK)


def deer(pen: Pen, rng: Random) -> None:
    coat = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.85))
    horn = shade((190, 160, 120), rng.uniform(0.6, 1.1))
    _legs(pen, rng, (-0.48, -0.38, 0.22, 0.32), 0.3, 0.98, 0.075, coat)
    pen.ellipse(-0.62, 0.12, 0.1, 0.12, WHITE)
    pen.ellipse(-0.1, 0.2, 0.54, 0.21, coat)
    pen.ellipse(-0.06, 0.34, 0.4, 0.08, shade(coat, 1.4))
    if rng.random() < 0.5:
        for x, y in rng.uniform((-0.5, 0.06), (0.2, 0.26), size=(8, 2)).tolist():
            pen.ellipse(x, y, 0.035, 0.035, WHITE)
    pen.polygon([(0.16, 0.3), (0.24, -0.05), (0.46, -0.42), (0.62, -0.34), (0.46, 0.25)], coat)
    spread = rng.uniform(0.8, 1.15)
    for side in (-1, 1):
        tip = 0.52 + 0.42 * side * spread
        pen.line([(0.52, -0.5), (0.52 + 0.26 * side, -0.68), (tip, -1.08)], 0.06, horn)
        pen.line([(0.52 + 0.26 * side, -0.68), (0.52 + 0.1 * side, -0.98)], 0.05, horn)
        pen.line([(0.52 + 0.34 * side * spread, -0.86), (0.52 + 0.56 * side * spread, -0.88)], 0.045, horn)
    pen.ellipse(0.38, -0.48, 0.13, 0.055, shade(coat, 0.85), turn=0.4)
    pen.ellipse(0.62, -0.4, 0.22, 0.13, coat, turn=0.3)
    pen.ellipse(0.8, -0.33, 0.05, 0.05, BLACK)
    pen.ellipse(0.6, -0.45, 0.035, 0.035, BLACK)


def frog(pen: Pen, rng: Random) -> None:
    hue = rng.uniform(0.2, 0.42) if rng.random() < 0.7 else rng.uniform(0.02, 0.15)
    skin = hsv(hue, rng.uniform(0.45, 0.9), rng.uniform(0.4, 0.85))
    for side in (-1, 1):
        pen.ellipse(0.72 * side, 0.42, 0.2, 0.46, shade(skin, 0.75), turn=0.5 * side)
        pen.line([(0.85 * side, 0.68), (1.08 * side, 0.82)], 0.14, shade(skin, 0.75))
        pen.line([(0.38 * side, 0.4), (0.42 * side, 0.8)], 0.16, shade(skin, 0.85))
        for toe in (-0.16, 0.0, 0.16):
            pen.line([(0.42 * side, 0.78), (0.42 * side + toe, 0.92)], 0.06, shade(skin, 0.85))
    pen.ellipse(0, 0.3, 0.68, 0.46, skin)
    pen.ellipse(0, 0.46, 0.46, 0.28, shade(skin, 1.4))
    pen.ellipse(0, -0.08, 0.66, 0.36, skin)
    if rng.random() < 0.6:
        for x, y in rng.uniform((-0.5, -0.25), (0.5, 0.3), size=(7, 2)).tolist():
            pen.ellipse(x, y, 0.07, 0.06, shade(skin, 0.6))
    for side in (-1, 1):
        pen.ellipse(0.36 * side, -0.42, 0.2, 0.2, skin)
        pen.ellipse(0.36 * side, -0.45, 0.14, 0.14, (244, 232, 150))
        pen.ellipse(0.36 * side, -0.45, 0.11, 0.05, BLACK)
    pen.line([(-0.5, -0.02), (-0.25, 0.1), (0, 0.13), (0.25, 0.1), (0.5, -0.02)], 0.045, shade(skin, 0.35))


FIGURES: Final[dict[str, Callable[[Pen, Random], None]]] = {
    f.__name__: f for f in (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck)
}
