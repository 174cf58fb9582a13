"""Charts as SVG text, coloured by the page's CSS variables so that they follow its light and dark modes.

They are drawn 360 units wide, the width of a phone: larger screens put them side by side instead of scaling text down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt

WIDTH: Final = 360
HEIGHT: Final = 230
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 10, 34
GUIDED: Final = 20  # classes: a larger confusion matrix gets guide lines


@dataclass(frozen=True)
class Series:
    """A line of a chart. ``style`` is a class of the page's CSS: ``main``, ``quiet``, ``third`` or ``fourth``."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "main"


@dataclass(frozen=True)
class _Frame:
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1) * (HEIGHT - TOP - BOTTOM)
        return right, down

    def axes(self, x_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> str:
        parts = []
        for tick in y_ticks:
            x, y = self.at(self.x[0], tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_number(tick, percent)}</text>')
        for tick in x_ticks:
            x, y = self.at(tick, self.y[0])
            parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle">{_number(tick, False)}</text>')
        parts.append(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
        )
        return "".join(parts)


def line_chart(series: Sequence[Series], *, label: str, x_label: str, percent: bool = False) -> str:
    """Return lines over a common x axis; ``label`` says for a screen reader what is shown."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or 0.05
    y_range = (max(0.0, low - margin), min(1.0, high + margin) if percent else high + margin)
    frame = _Frame((min(xs), max(xs)), y_range)
    lines = "".join(_line(frame, s) for s in series)
    x_ticks = [t for t in _ticks(*frame.x, 6) if float(t).is_integer()]
    body = frame.axes(x_label, x_ticks, _ticks(*frame.y, 5), percent) + lines
    return _svg(body, label) + _legend([(s.name, s.style) for s in series])


def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return accuracy over probability, after (``calibrated``) and before (``uncalibrated``) temperature scaling."""
    frame = _Frame((0, 1), (0, 1))
    start, end = frame.at(0, 0), frame.at(1, 1)
    diagonal = f'<path class="ideal" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'
    most = max((b["count"] for rows in bins.values() for b in rows), default=1)
    parts = []
    for name, style in (("uncalibrated", "quiet"), ("calibrated", "main")):
        points = [(b["confidence"], b["accuracy"]) for b in bins[name]]
        parts.append(_line(frame, Series(name, points, style), dots=False))
        for b in bins[name]:
            x, y = frame.at(b["confidence"], b["accuracy"])
            title = f"{b['count']} images, mean probability {b['confidence']:.1%}, right {b['accuracy']:.1%}"
            radius = 2 + 5 * math.sqrt(b["count"] / most)
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_title(title)}</circle>')
    ticks = [0, 0.25, 0.5, 0.75, 1]
    body = frame.axes("probability of the prediction", ticks, ticks, True) + diagonal + "".join(parts)
    legend = _legend([("after temperature scaling", "main"), ("before", "quiet")])
    return _svg(body, "accuracy over probability") + legend


def histogram(
    groups: Sequence[tuple[str, str, npt.NDArray[np.floating]]], *, label: str, threshold: float | None, bins: int = 28
) -> str:
    """Return the distributions of groups (name, style, values), each as a share of its own, with a threshold."""
    values = np.concatenate([v for _, _, v in groups])
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = [(name, style, np.histogram(v, edges)[0] / max(len(v), 1)) for name, style, v in groups]
    top = max(float(s.max()) for _, _, s in shares) or 1.0
    frame = _Frame((float(edges[0]), float(edges[-1])), (0, top))
    parts = []
    for _, style, heights in shares:
        path = "M{:.1f} {:.1f}".format(*frame.at(float(edges[0]), 0))
        for i, height in enumerate(heights):
            for edge in (edges[i], edges[i + 1]):
                path += "L{:.1f} {:.1f}".format(*frame.at(float(edge), float(height)))
        path += "L{:.1f} {:.1f}Z".format(*frame.at(float(edges[-1]), 0))
        parts.append(f'<path class="area {style}" d="{path}"/>')
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        x, y = frame.at(threshold, 0)
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{y:.1f}"/>')
        anchor, dx = ("end", -4) if x > WIDTH / 2 else ("start", 4)
        parts.append(f'<text x="{x + dx:.1f}" y="{TOP + 9}" text-anchor="{anchor}">threshold {threshold:.3g}</text>')
    body = frame.axes("score", _ticks(*frame.x, 5), _ticks(0, top, 4), True) + "".join(parts)
    return _svg(body, label) + _legend([(name, style) for name, style, _ in shares])


def confusion_svg(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return (C, C + 1) counts with rows = targets: right ones in one colour, wrong ones in another, zeros left out.

    Cells never get smaller than a name can be read: beyond about 25 classes the page scrolls the matrix sideways.
    """
    columns = [*classes, "unreadable"] if matrix[:, -1].any() else list(classes)
    longest = min(16, max(len(name) for name in columns))
    cell = max(11.0, min(44.0, (WIDTH - 8 - 6.2 * longest) / len(columns)))
    size = min(12.0, max(8.5, cell * 0.5))
    margin = 8 + longest * size * 0.58
    width, height = margin + cell * len(columns) + 4, margin + cell * len(classes) + 4
    totals = np.maximum(matrix.sum(axis=1), 1)
    parts = [
        f'<rect class="ground" x="{margin:.1f}" y="{margin:.1f}" width="{width - margin - 4:.1f}" '
        f'height="{height - margin - 4:.1f}"/>'
    ]
    if len(classes) > GUIDED:  # lines to follow from a cell to its names
        for i in range(5, len(columns), 5):
            parts.append(f'<path class="grid" d="M{margin + i * cell - 0.5:.1f} {margin:.1f}V{height - 4:.1f}"/>')
        for i in range(5, len(classes), 5):
            parts.append(f'<path class="grid" d="M{margin:.1f} {margin + i * cell - 0.5:.1f}H{width - 4:.1f}"/>')
    for y, name in enumerate(classes):
        middle = margin + (y + 0.5) * cell
        parts.append(
            f'<text x="{margin - 4:.1f}" y="{middle + size * 0.35:.1f}" text-anchor="end">{_short(name)}</text>'
        )
        for x in np.flatnonzero(matrix[y, : len(columns)]).tolist():
            count, share = int(matrix[y, x]), float(matrix[y, x] / totals[y])
            left, top = margin + x * cell, margin + y * cell
            tone = "right" if x == y else "wrong"
            title = f"{name} → {columns[x]}: {count} of {totals[y]} ({share:.1%})"
            parts.append(
                f'<rect class="{tone}" x="{left:.1f}" y="{top:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}" '
                f'fill-opacity="{max(0.12, share**0.6):.2f}">{_title(title)}</rect>'
            )
            if cell >= 20 and len(str(count)) * size * 0.6 < cell:
                tone = "over" if share**0.6 > 0.75 else "on"
                parts.append(
                    f'<text class="{tone}" x="{left + cell / 2 - 0.5:.1f}" y="{top + cell / 2 + size * 0.35:.1f}" '
                    f'text-anchor="middle">{count}</text>'
                )
    for x, name in enumerate(columns):
        right, foot = margin + (x + 0.5) * cell + size * 0.35, margin - 4
        parts.append(f'<text transform="translate({right:.1f} {foot:.1f}) rotate(-90)">{_short(name)}</text>')
    style = f"min-width:{width:.0f}px;max-width:{max(width, 640):.0f}px;font-size:{size:.1f}px"
    return (
        f'<svg class="matrix" role="img" aria-label="confusion matrix" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="{style}">{"".join(parts)}</svg>'
    )


def _line(frame: _Frame, series: Series, *, dots: bool = True) -> str:
    points = [frame.at(x, y) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    marks = ""
    if dots and len(points) <= 40:
        marks = "".join(
            f'<circle class="{series.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
            f"{_title(f'{series.name}: {value:.4g}')}</circle>"
            for (x, y), (_, value) in zip(points, series.points, strict=True)
        )
    return f'<path class="line {series.style}" d="{path}"/>{marks}' if points else ""


def _svg(body: str, label: str) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{body}</svg>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in entries)
    return f'<p class="legend">{items}</p>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _short(name: str) -> str:
    return escape(name if len(name) <= 16 else name[:15] + "…")


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers within [low, high], about as many as asked for."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, percent: bool) -> str:
    return f"{value * 100:.3g}%" if percent else f"{value:.4g}"
