"""A sweep as an image: the metric over one or two keys, parallel coordinates over more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG_FROM = 20  # an axis whose largest value is this many times the smallest is logarithmic
LINES = 6  # a second key with at most so many values is told by lines, one with more by colour
CLOSE = 0.04  # share of an axis below which one label would cover another


class Axis:
    """A key's values as positions: numbers as they are, perhaps on a logarithmic scale, words one beside another."""

    def __init__(self, name: str, values: Sequence[str]) -> None:
        self.name = name
        numbers = [_number(v) for v in values]
        self.numeric = all(n is not None for n in numbers)
        self.labels = sorted(set(values)) if not self.numeric else []
        self.numbers = sorted({n for n in numbers if n is not None}) if self.numeric else []
        self.log = self.numeric and self.numbers[0] > 0 and self.numbers[-1] / self.numbers[0] >= LOG_FROM
        self.distinct = len(set(values))

    def position(self, value: str) -> float:
        if not self.numeric:
            return float(self.labels.index(value))
        number = _number(value)
        assert number is not None
        return number

    def scaled(self, position: float) -> float:
        """Return where a position lies on an axis that is drawn by hand."""
        return math.log10(position) if self.log else position

    def label(self, axes: Any) -> None:
        axes.set_xlabel(self.name)
        if self.log:
            axes.set_xscale("log")
        if not self.numeric:
            axes.set_xticks(range(len(self.labels)), self.labels)


def draw(rows: Sequence[dict[str, Any]], metric: str, keys: Sequence[str], path: Path) -> bool:
    """Draw the trials that have a value; returns whether there was something to draw."""
    shown = [r for r in rows if r[metric] is not None and all(r.get(k) is not None for k in keys)]
    if not shown or not keys:
        return False
    axes = [Axis(k, [r[k] for r in shown]) for k in keys]
    axes = [a for a in axes if a.distinct > 1] or axes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, 1.9 * (len(axes) + 1)), 4.4), layout="constrained")
    if len(axes) <= 2:
        _scatter(figure, shown, metric, axes)
    else:
        _parallel(figure, shown, metric, axes)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _scatter(figure: Any, rows: Sequence[dict[str, Any]], metric: str, axes: Sequence[Axis]) -> None:
    plot = figure.subplots()
    axes = sorted(axes, key=lambda a: (not a.numeric, -a.distinct))  # the key with most values along the image
    first, second = axes[0], axes[1] if len(axes) > 1 else None
    done = [r for r in rows if r["status"] == "finished"]
    if second is not None and (second.distinct > LINES and second.numeric):
        x, y = [first.position(r[first.name]) for r in done], [r[metric] for r in done]
        norm = "log" if second.log else "linear"
        points = plot.scatter(x, y, c=[second.position(r[second.name]) for r in done], norm=norm, cmap="viridis")
        figure.colorbar(points, label=second.name)
    else:
        for label, group in _groups(done, second):
            group.sort(key=lambda r: first.position(r[first.name]))
            style = "o-" if first.numeric and len({r[first.name] for r in group}) == len(group) else "o"
            plot.plot([first.position(r[first.name]) for r in group], [r[metric] for r in group], style, label=label)
        if second is not None:
            plot.legend()
    stopped = [r for r in rows if r["status"] == "pruned"]
    if stopped:
        places = [first.position(r[first.name]) for r in stopped]
        plot.plot(places, [r[metric] for r in stopped], "x", color="0.6", label="stopped early")
        plot.legend()
    first.label(plot)
    plot.set_ylabel(metric)
    plot.grid(alpha=0.3)


def _groups(rows: Sequence[dict[str, Any]], axis: Axis | None) -> list[tuple[str | None, list[dict[str, Any]]]]:
    """Return (label, rows) for each value of a key; all rows where there is no key."""
    if axis is None:
        return [(None, list(rows))]
    values = sorted({str(r[axis.name]) for r in rows}, key=axis.position)
    return [(f"{axis.name}={v}", [r for r in rows if r[axis.name] == v]) for v in values]


def _parallel(figure: Any, rows: Sequence[dict[str, Any]], metric: str, axes: Sequence[Axis]) -> None:
    """Each trial a line through its values (Inselberg, 1985); colour and the last axis tell the metric."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    plot = figure.subplots()
    values = [r[metric] for r in rows if r["status"] == "finished"]
    norm = Normalize(min(values), max(values))
    colours = colormaps["viridis" if metric.endswith("acc") else "viridis_r"]

    spans = []
    for axis in axes:
        places = [axis.scaled(axis.position(r[axis.name])) for r in rows]
        spans.append((min(places), max(places)))
    low, high = min(r[metric] for r in rows), max(r[metric] for r in rows)
    for row in sorted(rows, key=lambda r: (r["status"] == "finished", _goodness(metric, r[metric]))):
        heights = [
            _share(axis.scaled(axis.position(row[axis.name])), *span) for axis, span in zip(axes, spans, strict=True)
        ]
        done = row["status"] == "finished"
        best = row is rows[0]
        plot.plot(
            [*range(len(axes)), len(axes)],
            [*heights, _share(row[metric], low, high)],
            color=colours(norm(row[metric])) if done else "0.8",
            linestyle="-" if done else ":",
            linewidth=3 if best else 1.4,
        )
    for place, (axis, span) in enumerate(zip(axes, spans, strict=True)):
        _ticks(plot, place, axis, span)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        plot.text(len(axes) + 0.03, share, f"{low + share * (high - low):.3g}", fontsize=8, va="center")
    for place in range(len(axes) + 1):
        plot.axvline(place, color="0.3", linewidth=0.8)
    plot.set_xticks(range(len(axes) + 1), [*(a.name for a in axes), metric])
    plot.set_yticks([])
    plot.set_xlim(-0.1, len(axes) + 0.25)
    plot.spines[:].set_visible(False)
    if any(r["status"] == "pruned" for r in rows):
        plot.plot([], [], ":", color="0.6", label="stopped early")
        plot.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), frameon=False)
    figure.colorbar(ScalarMappable(norm, colours), ax=plot, label=metric, pad=0.02)


def _ticks(plot: Any, place: int, axis: Axis, span: tuple[float, float]) -> None:
    if not axis.numeric:
        marks = [(_share(float(i), *span), text) for i, text in enumerate(axis.labels)]
    elif axis.distinct <= LINES:
        marks = [(_share(axis.scaled(v), *span), f"{v:.4g}") for v in axis.numbers]
    else:
        heights = [(s, span[0] + s * (span[1] - span[0])) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
        marks = [(s, f"{10**v if axis.log else v:.3g}") for s, v in heights]
    last = -1.0
    for share, text in marks:
        if share - last < CLOSE:
            continue
        last = share
        plot.text(place + 0.03, share, text, fontsize=8, va="center", bbox={"color": "white", "alpha": 0.6, "pad": 0.5})


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)


def _goodness(metric: str, value: float) -> float:
    return value if metric.endswith("acc") else -value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
