"""Charts as SVG, coloured by the page's CSS variables so that they follow its light and dark modes.

They are drawn 360 units wide, the width of a phone: larger screens put them side by side instead of scaling text down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from objrec.reports.html import count_images

WIDTH: Final = 360
HEIGHT: Final = 230
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 10, 34
GUIDED: Final = 20  # classes: a larger confusion matrix gets guide lines


@dataclass(frozen=True)
class Chart:
    """An SVG and its legend: names and classes of the style sheet."""

    svg: Markup
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Series:
    """A line of a chart. ``style`` is a class of the style sheet: ``main``, ``quiet``, ``third`` or ``fourth``."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "main"


class _Svg:
    """An SVG of ``width`` x ``height`` units; ``label`` describes it to a screen reader."""

    def __init__(self, css: str, label: str, width: float, height: float, **attributes: str) -> None:
        view = f"0 0 {width:.0f} {height:.0f}"
        self._root = ElementTree.Element(
            "svg", {"class": css, "role": "img", "aria-label": label, "viewBox": view, **attributes}
        )

    def add(self, tag: str, css: str = "", *, text: str = "", title: str = "", **attributes: str | float) -> None:
        """Append an element; ``title`` is shown under the pointer. Underscores in names stand for hyphens."""
        found = {"class": css} if css else {}
        for name, value in attributes.items():
            found[name.replace("_", "-")] = value if isinstance(value, str) else f"{value:.5g}"
        element = ElementTree.SubElement(self._root, tag, found)
        element.text = text or None
        if title:
            ElementTree.SubElement(element, "title").text = title

    def markup(self) -> Markup:
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))


class _Plot(_Svg):
    """An SVG with axes over the given ranges."""

    def __init__(self, label: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        super().__init__("chart", label, WIDTH, HEIGHT)
        self._x, self._y = x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - self._x[0]) / ((self._x[1] - self._x[0]) or 1) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self._y[0]) / ((self._y[1] - self._y[0]) or 1) * (HEIGHT - TOP - BOTTOM)
        return right, down

    def axes(self, x_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> None:
        for tick in y_ticks:
            _, y = self.at(self._x[0], tick)
            self.add("path", "grid", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}")
            self.add("text", text=_number(tick, percent), x=LEFT - 5, y=y + 4, text_anchor="end")
        for tick in x_ticks:
            x, y = self.at(tick, self._y[0])
            self.add("text", text=_number(tick, False), x=x, y=y + 14, text_anchor="middle")
        self.add("text", text=x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle")

    def path(self, css: str, points: Sequence[tuple[float, float]], *, closed: bool = False) -> None:
        if points:
            steps = "L".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in points)
            self.add("path", css, d=f"M{steps}{'Z' if closed else ''}")

    def dot(self, css: str, x: float, y: float, radius: float, title: str) -> None:
        right, down = self.at(x, y)
        self.add("circle", css, cx=right, cy=down, r=radius, title=title)


def line_chart(series: Sequence[Series], *, label: str, x_label: str, percent: bool = False) -> Chart:
    """Draw lines over a common x axis; ``label`` describes the chart to a screen reader."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or 0.05
    x_range = (min(xs), max(xs))
    y_range = (max(0.0, low - margin), min(1.0, high + margin) if percent else high + margin)
    plot = _Plot(label, x_range, y_range)
    plot.axes(x_label, [t for t in _ticks(*x_range, 6) if float(t).is_integer()], _ticks(*y_range, 5), percent)
    for s in series:
        plot.path(f"line {s.style}", s.points)
        for x, y in s.points if len(s.points) <= 40 else ():
            plot.dot(s.style, x, y, 2.5, f"{s.name}: {y:.4g}")
    return Chart(plot.markup(), [(s.name, s.style) for s in series])


def reliability_diagram(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    """Draw accuracy over probability, after (``calibrated``) and before (``uncalibrated``) temperature scaling."""
    plot = _Plot("accuracy over probability", (0, 1), (0, 1))
    ticks = [0, 0.25, 0.5, 0.75, 1]
    plot.axes("probability of the prediction", ticks, ticks, True)
    plot.path("ideal", [(0, 0), (1, 1)])
    most = max((b["count"] for rows in bins.values() for b in rows), default=1)
    for name, style in (("uncalibrated", "quiet"), ("calibrated", "main")):
        plot.path(f"line {style}", [(b["confidence"], b["accuracy"]) for b in bins[name]])
        for b in bins[name]:
            title = (
                f"{count_images(int(b['count']))}, mean probability {b['confidence']:.1%}, accuracy {b['accuracy']:.1%}"
            )
            plot.dot(style, b["confidence"], b["accuracy"], 2 + 5 * math.sqrt(b["count"] / most), title)
    return Chart(plot.markup(), [("after temperature scaling", "main"), ("before", "quiet")])


def histogram(
    groups: Sequence[tuple[str, str, npt.NDArray[np.floating]]], *, label: str, threshold: float | None, bins: int = 28
) -> Chart:
    """Draw the distributions of groups (name, style, values), each as a share of its own, with a threshold."""
    values = np.concatenate([v for _, _, v in groups])
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = [(style, np.histogram(v, edges)[0] / max(len(v), 1)) for _, style, v in groups]
    top = max(float(s.max()) for _, s in shares) or 1.0
    start, end = float(edges[0]), float(edges[-1])
    plot = _Plot(label, (start, end), (0, top))
    plot.axes("score", _ticks(start, end, 5), _ticks(0, top, 4), True)
    for style, heights in shares:
        steps = list(zip(np.repeat(edges, 2)[1:-1].tolist(), np.repeat(heights, 2).tolist(), strict=True))
        plot.path(f"area {style}", [(start, 0), *steps, (end, 0)], closed=True)
    if threshold is not None and start <= threshold <= end:
        x, _ = plot.at(threshold, 0)
        plot.path("mark", [(threshold, top), (threshold, 0)])
        anchor, dx = ("end", -4) if x > WIDTH / 2 else ("start", 4)
        plot.add("text", text=f"threshold {threshold:.3g}", x=x + dx, y=TOP + 9, text_anchor=anchor)
    return Chart(plot.markup(), [(name, style) for name, style, _ in groups])


def confusion_svg(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Markup:
    """Draw (C, C + 1) counts with rows = targets: correct ones in one colour, wrong ones in another, zeros left out.

    Cells never get smaller than a name can be read: beyond about 25 classes the page scrolls the matrix sideways.
    """
    columns = [*classes, "unreadable"] if matrix[:, -1].any() else list(classes)
    longest = min(16, max(len(name) for name in columns))
    cell = max(11.0, min(44.0, (WIDTH - 8 - 6.2 * longest) / len(columns)))
    size = min(12.0, max(8.5, cell * 0.5))
    margin = 8 + longest * size * 0.58
    width, height = margin + cell * len(columns) + 4, margin + cell * len(classes) + 4
    style = f"min-width:{width:.0f}px;max-width:{max(width, 640):.0f}px;font-size:{size:.1f}px"
    svg = _Svg("matrix", "confusion matrix", width, height, style=style)
    svg.add("rect", "ground", x=margin, y=margin, width=width - margin - 4, height=height - margin - 4)
    if len(classes) > GUIDED:  # lines to follow from a cell to its names
        for i in range(5, len(columns), 5):
            svg.add("path", "grid", d=f"M{margin + i * cell - 0.5:.1f} {margin:.1f}V{height - 4:.1f}")
        for i in range(5, len(classes), 5):
            svg.add("path", "grid", d=f"M{margin:.1f} {margin + i * cell - 0.5:.1f}H{width - 4:.1f}")
    for y, name in enumerate(classes):
        middle = margin + (y + 0.5) * cell + size * 0.35
        svg.add("text", text=_short(name), x=margin - 4, y=middle, text_anchor="end")
        _add_cells(svg, matrix[y], y, columns, margin, cell, size)
    for x, name in enumerate(columns):
        right, foot = margin + (x + 0.5) * cell + size * 0.35, margin - 4
        svg.add("text", text=_short(name), transform=f"translate({right:.1f} {foot:.1f}) rotate(-90)")
    return svg.markup()


def _add_cells(
    svg: _Svg, counts: npt.NDArray[np.int64], y: int, columns: Sequence[str], margin: float, cell: float, size: float
) -> None:
    """Draw row ``y`` of a confusion matrix."""
    total, top = max(int(counts.sum()), 1), margin + y * cell
    for x in np.flatnonzero(counts[: len(columns)]).tolist():
        count, left = int(counts[x]), margin + x * cell
        strength = (count / total) ** 0.6
        svg.add(
            "rect",
            "right" if x == y else "wrong",
            title=f"{columns[y]} → {columns[x]}: {count} of {total} ({count / total:.1%})",
            x=left,
            y=top,
            width=cell - 1,
            height=cell - 1,
            fill_opacity=max(0.12, round(strength, 2)),
        )
        if cell >= 20 and len(str(count)) * size * 0.6 < cell:
            css, middle = "over" if strength > 0.75 else "on", top + cell / 2 + size * 0.35
            svg.add("text", css, text=str(count), x=left + cell / 2 - 0.5, y=middle, text_anchor="middle")


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


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
