"""Turn a study into the files of ``report_dir``."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any, Final

from objrec.evaluation import label_errors, sections
from objrec.evaluation.compare import differing
from objrec.evaluation.confusion_chart import draw_confusion_matrix
from objrec.evaluation.evaluate import Evaluation
from objrec.evaluation.files import prediction_rows, write_csv
from objrec.evaluation.galleries import (
    Card,
    heat_maps,
    image_uri,
    least_certain_rights,
    load_pixels,
    surest_mistakes,
)
from objrec.evaluation.heatmaps import Explainer
from objrec.evaluation.metrics import Predictions, confusion_matrix
from objrec.images.image_folder import list_classes
from objrec.system.files import write_json

MISTAKES: Final = 24
UNCERTAIN: Final = 12
SUSPECTS: Final = 18
DIFFERING: Final = 24
DOUBT: Final = 0.15  # share of errors above which the labels are the lesser suspects
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
    """Write ``report.html``, ``metrics.json``, the CSV files and ``confusion_matrix.png``; none tells the time.

    ``explainer`` is asked for only if there is an image to explain.
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
    page = _page(study, explainer, model_dir=model_dir, train_dir=train_dir, max_pixels=max_pixels)
    (report_dir / "report.html").write_text(page, encoding="utf-8")


def _page(
    study: Evaluation, explainer: Callable[[], Explainer], *, model_dir: Path, train_dir: Path | None, max_pixels: int
) -> str:
    p, m = study.predictions, study.metrics
    mistakes, rights = surest_mistakes(p, MISTAKES), least_certain_rights(p, UNCERTAIN)
    suspects = study.suspects[:SUSPECTS]
    differ = differing(p, study.other)[:DIFFERING] if study.other is not None else []
    shown = [*mistakes, *rights, *(s["index"] for s in suspects), *differ]
    pixels = load_pixels(p, study.card, shown, max_pixels=max_pixels)
    images = {i: image_uri(image) for i, image in pixels.items()}
    explained = list(dict.fromkeys([*mistakes, *rights]))
    method, heats = "", {}
    if explained:
        how = explainer()
        method, heats = how.method, heat_maps(how, p, pixels, explained[: how.images])
    doubts = [
        Card(
            s["index"],
            f"in <b>{escape(s['target'])}</b>, rather {escape(s['suggested'])}?",
            s["path"],
            images[s["index"]],
        )
        for s in suspects
    ]
    looked = f"What spoke for the predicted class is bright ({escape(method)})."
    body = [
        sections.headline(study),
        "",  # the list of sections, when they are known
        sections.problems(study),
        sections.comparison(study, [_difference(study, i, images) for i in differ if i in images]),
        sections.confusions(study),
        sections.per_class_bars(study),
        sections.gallery(
            "mistakes", "Surest mistakes", looked, [_verdict(p, i, images, heats) for i in mistakes], toggle=True
        ),
        sections.gallery(
            "uncertain",
            "Right, but least certain",
            looked,
            [_verdict(p, i, images, heats) for i in rights],
            toggle=True,
        ),
        sections.gallery(
            "labels",
            "Suspected label errors",
            _about_suspects(study),
            doubts,
        ),
        sections.calibration(study),
        sections.training_curves(_history(model_dir / "training" / "metrics.csv")),
        sections.unknowns(study),
        sections.slices(study),
        sections.robustness(study),
        sections.near_duplicates(study),
        sections.data_facts(study, _counts(train_dir)),
        _credits(study, list(images)),
        sections.reproduction(study, _config(model_dir), _environment(study)),
    ]
    found = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(body))
    body[1] = "<nav>" + "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in found) + "</nav>"
    template = Template(resources.files("objrec.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    title = f"{m['accuracy']:.1%} · {study.card.backbone.get('name', 'model')} · test report"
    return template.substitute(title=escape(title), body="\n".join(part for part in body if part))


def _about_suspects(study: Evaluation) -> str:
    count, share = len(study.suspects), 1 - study.metrics["accuracy"]
    text = f"{count:,} in all, the surest first; predictions.csv names them. By {escape(label_errors.METHOD)}."
    if share > DOUBT:
        text += f" <b>The model is wrong on {share:.0%} of the images: most of these will be its own mistakes.</b>"
    return text


def _verdict(p: Predictions, i: int, images: Mapping[int, str], heats: Mapping[int, str]) -> Card:
    names, outcome = p.outcome.classes, p.outcome
    target, said = escape(names[outcome.targets[i]]), escape(names[p.preds[i]])
    if p.correct[i]:
        caption = f"<b>{said}</b> {p.confidence[i]:.0%}"
    else:
        caption = f"{target} → <b>{said}</b> {p.confidence[i]:.0%}"
    return Card(i, caption, outcome.paths[i], images[i], heats.get(i))


def _difference(study: Evaluation, i: int, images: Mapping[int, str]) -> Card:
    assert study.other is not None
    said = []
    for name, p in (("this", study.predictions), ("other", study.other)):
        answer = escape(p.outcome.classes[p.preds[i]])
        said.append(
            f"{name}: {'<b>' if p.correct[i] else ''}{answer}{'</b>' if p.correct[i] else ''} {p.confidence[i]:.0%}"
        )
    return Card(i, "<br>".join(said), study.predictions.outcome.paths[i], images[i])


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


def _credits(study: Evaluation, shown: Sequence[int]) -> str:
    """Name creators and licences of the images on the page, where the manifest knows them."""
    rows: list[list[Any]] = []
    for i in sorted(shown):
        row = study.manifest[i]
        if row.get("creator") or row.get("license"):
            page = str(row.get("landing_page") or "")
            path = escape(study.predictions.outcome.paths[i])
            link = (
                f'<a href="{escape(page)}" rel="noreferrer">{path}</a>'
                if page.startswith(("https://", "http://"))
                else path
            )
            rows.append(
                [link, escape(str(row.get("creator") or "unknown")), escape(str(row.get("license") or "unknown"))]
            )
    if not rows:
        return ""
    body = sections.table(["image", "creator", "licence"], rows)
    return sections.section("credits", "Credits", f"<details><summary>Images on this page</summary>{body}</details>")
