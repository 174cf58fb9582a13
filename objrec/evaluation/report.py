"""Turn a study into the files of ``report_dir``."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from objrec.evaluation import label_errors
from objrec.evaluation.compare import differing
from objrec.evaluation.confusion_chart import draw_confusion_matrix
from objrec.evaluation.evaluate import Evaluation
from objrec.evaluation.files import prediction_rows, write_csv
from objrec.evaluation.galleries import (
    confident_errors,
    heat_maps,
    image_uri,
    load_pixels,
    make_cards,
    uncertain_correct,
)
from objrec.evaluation.heatmaps import Explainer
from objrec.evaluation.metrics import confusion_matrix, wilson
from objrec.images.image_folder import list_classes
from objrec.reports.charts import Chart, Series, confusion_svg, histogram, line_chart, reliability_diagram
from objrec.reports.html import write_page
from objrec.system.files import write_json

TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
ERRORS: Final = 24
UNCERTAIN: Final = 12
SUSPECTS: Final = 18
DIFFERING: Final = 24
MAX_CONFUSIONS: Final = 12
MAX_ROWS: Final = 30
DOUBT: Final = 0.15  # share of errors above which the labels are the lesser suspects
BESIDE: Final = 20  # classes: a larger matrix takes the whole width
LIBRARIES: Final = ("objrec", "onnxruntime", "numpy", "pillow")


def write_report(
    study: Evaluation,
    explainer: Callable[[], Explainer],
    report_dir: Path,
    *,
    model_dir: Path,
    train_dir: Path | None,
    max_pixels: int,
) -> None:
    """Write ``report.html``, ``metrics.json``, the CSV files and ``confusion_matrix.png``; none holds the time.

    ``explainer`` is called only if there is an image to explain.
    """
    p = study.predictions
    rows = prediction_rows(p)
    for name, values in study.columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    write_json(report_dir / "metrics.json", study.metrics)
    write_csv(report_dir / "per_class.csv", study.metrics["per_class"])
    write_csv(report_dir / "predictions.csv", rows)
    write_csv(report_dir / "unknown.csv", study.unknown_scores)
    draw_confusion_matrix(confusion_matrix(p), study.card.class_names).save(report_dir / "confusion_matrix.png")
    write_page(
        report_dir / "report.html",
        TEMPLATE,
        m=study.metrics,
        card=study.card,
        max_rows=MAX_ROWS,
        doubt=DOUBT,
        top_k=[(f"top-{k} accuracy", f"{v:.1%}") for k, v in list(study.metrics["top_k"].items())[-1:]],
        **_galleries(study, explainer, max_pixels),
        **_classes(study),
        reliability=reliability_diagram(study.metrics["reliability"]),
        curves=_training_curves(_history(model_dir / "training" / "metrics.csv")),
        score_histogram=_score_histogram(study),
        robustness=_robustness(study),
        train_counts=_counts(train_dir),
        config=_config(model_dir),
        environment=_environment(study),
    )


def _galleries(study: Evaluation, explainer: Callable[[], Explainer], max_pixels: int) -> dict[str, Any]:
    p, suspects = study.predictions, study.suspects[:SUSPECTS]
    errors, correct = confident_errors(p, ERRORS), uncertain_correct(p, UNCERTAIN)
    models = [p, study.other] if study.other is not None else [p]
    differ = differing(p, study.other)[:DIFFERING] if study.other is not None else []
    shown = [*errors, *correct, *(s["index"] for s in suspects), *differ]
    pixels = load_pixels(p, study.card, shown, max_pixels=max_pixels)
    images = {i: image_uri(image) for i, image in pixels.items()}
    method, heats = "", {}
    if explained := list(dict.fromkeys([*errors, *correct])):
        how = explainer()
        method, heats = how.method, heat_maps(how, p, pixels, explained[: how.images])
    cards = make_cards([s["index"] for s in suspects], [p], images, {})
    return {
        "method": method,
        "errors": make_cards(errors, [p], images, heats),
        "correct": make_cards(correct, [p], images, heats),
        "suspects": list(zip(cards, (s["suggested"] for s in suspects), strict=True)),
        "suspect_count": len(study.suspects),
        "suspect_method": label_errors.METHOD,
        "differing": make_cards(differ, models, images, {}),
        "credits": [
            (p.outcome.paths[i], row)
            for i in sorted(images)
            if (row := study.manifest[i]).get("creator") or row.get("license")
        ],
    }


def _classes(study: Evaluation) -> dict[str, Any]:
    """The confusion matrix, the most frequent confusions, and recall with its interval, the worst first."""
    classes = study.card.class_names
    matrix = np.array(study.metrics["confusion_matrix"]["counts"])
    wrong = [
        (int(matrix[y, x]), y, x) for y in range(len(classes)) for x in range(len(classes)) if x != y and matrix[y, x]
    ]
    wrong.sort(key=lambda row: (-row[0], row[1], row[2]))
    tested = [r for r in study.metrics["per_class"] if r["support"]]
    compared = study.metrics.get("compare", {}).get("recall", [])
    return {
        "matrix": confusion_svg(matrix, classes),
        "beside": len(classes) <= BESIDE,
        "confusions": [(classes[y], classes[x], n, n / matrix[y].sum()) for n, y, x in wrong[:MAX_CONFUSIONS]],
        "recalls": [
            (r, *wilson(r["correct"], r["support"])) for r in sorted(tested, key=lambda r: (r["recall"], r["class"]))
        ],
        "recall_changes": sorted((r["this"] - r["other"], r["class"], r) for r in compared),
    }


def _training_curves(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, Chart]]:
    """Charts of loss and accuracy over epochs, from ``training/metrics.csv``."""
    charts = []
    for quantity, label, percent in (("loss", "loss", False), ("acc", "accuracy", True)):
        series = [
            Series(name, points, style)
            for part, name, style in (("train", "training", "quiet"), ("val", "validation", "main"))
            if (points := [(r["epoch"] + 1, r[f"{part}/{quantity}"]) for r in rows if f"{part}/{quantity}" in r])
        ]
        if series:
            chart = line_chart(series, label=f"{label} over epochs", x_label="epoch", percent=percent)
            charts.append((label.capitalize(), chart))
    return charts


def _score_histogram(study: Evaluation) -> Chart | None:
    """The scores of test images beside those of images that are none of the classes."""
    found = study.metrics["unknown"]
    if not found["against"]:
        return None
    known = np.array([s for s in study.columns["unknown_score"] if s != ""], dtype=np.float64)
    groups = [("test images", "main", known)]
    for kind, name, style in (("noise", "synthetic noise", "quiet"), ("outside", "other images", "third")):
        scores = np.array([r["score"] for r in study.unknown_scores if r["kind"] == kind])
        if len(scores):
            groups.append((name, style, scores))
    return histogram(groups, label="distribution of scores", threshold=found["threshold"])


def _robustness(study: Evaluation) -> tuple[Chart, list[Series]] | None:
    """Accuracy under blur, noise, JPEG and brightness, strength 0 = unaltered."""
    rows = study.metrics.get("robustness", [])
    if not rows:
        return None
    kinds = dict.fromkeys(r["kind"] for r in rows)
    series = [
        Series(
            kind,
            [(0, study.metrics["accuracy"]), *((r["strength"], r["accuracy"]) for r in rows if r["kind"] == kind)],
            style,
        )
        for kind, style in zip(kinds, ("main", "quiet", "third", "fourth"), strict=True)
    ]
    label = "accuracy under perturbations"
    return line_chart(series, label=label, x_label="strength (0 = unaltered)", percent=True), series


def _history(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]


def _counts(train_dir: Path | None) -> dict[str, int] | None:
    if train_dir is None:
        return None
    split = list_classes(train_dir)
    return dict(Counter(split.classes[target] for _, target in split.files))


def _config(model_dir: Path) -> str:
    path = model_dir / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _environment(study: Evaluation) -> dict[str, str]:
    found = {f"{name} (training)": version for name, version in sorted(study.card.versions.items())}
    for name in LIBRARIES:
        try:
            found[f"{name} (evaluation)"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "Python (evaluation)": ".".join(map(str, sys.version_info[:3]))}
