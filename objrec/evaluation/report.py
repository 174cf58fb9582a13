"""``report.html``: one file, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any


def render(metrics: Mapping[str, Any], classes: Sequence[Mapping[str, Any]], confusion_png: Path) -> str:
    """Return the page."""
    low, high = metrics["confidence_interval"]
    matrix = base64.b64encode(confusion_png.read_bytes()).decode()
    rows = "".join(
        f"<tr><td>{escape(row['class'])}<td>{row['support']}<td>{row['precision']:.3f}<td>{row['recall']:.3f}"
        f"<td>{row['f1']:.3f}"
        for row in classes
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>Test report</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}img{max-width:100%}td,th{padding:.1rem .8rem;text-align:left}</style>"
        f"<h1>{metrics['accuracy']:.1%} of {metrics['num_images']} test pictures are right</h1>"
        f"<p>95 % interval {low:.1%} to {high:.1%}; macro F1 {metrics['macro_f1']:.3f}; "
        f"log loss {metrics['log_loss']:.3f}; calibration error {metrics['ece']:.3f}.</p>"
        f'<img alt="confusion matrix" src="data:image/png;base64,{matrix}">'
        f"<table><tr><th>class<th>pictures<th>precision<th>recall<th>F1{rows}</table></html>\n"
    )
