"""The sections of ``report.html``: each returns HTML, or nothing where there is nothing to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from objrec.evaluation.charts import Series, confusion_svg, histogram, line_chart, reliability_diagram
from objrec.evaluation.evaluate import Evaluation
from objrec.evaluation.galleries import Card
from objrec.evaluation.metrics import wilson

MAX_CONFUSIONS = 12
MAX_ROWS = 30
BESIDE = 20  # classes: a larger matrix takes the whole width


def section(anchor: str, title: str, *parts: str, lead: str = "") -> str:
    """Wrap ``parts`` in a section with a heading; empty without parts."""
    inside = "".join(parts)
    if not inside:
        return ""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{lead}{inside}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; columns whose heading begins with ``#`` hold numbers. Cells are HTML."""
    number = [name.startswith("#") for name in head]
    top = "".join(f"<th{' class=n' if n else ''}>{escape(h.lstrip('#'))}" for h, n in zip(head, number, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td class={'n' if n else 'wide'}>{cell}" for cell, n in zip(row, number, strict=True))
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}{body}</table></div>'


def headline(study: Evaluation) -> str:
    """Accuracy with its interval, and the other numbers that people ask for first."""
    m, card = study.metrics, study.card
    low, high = m["confidence_interval"]
    top = list(m["top_k"].items())[-1:]
    tiles = [
        ("macro F1", f"{m['macro_f1']:.3f}"),
        *((f"top-{k} accuracy", _percent(v)) for k, v in top),
        ("log loss", f"{m['log_loss']:.3f}"),
        ("calibration error", _percent(m["ece"])),
        ("test images", f"{m['num_images']:,}"),
        ("unreadable", f"{m['num_unreadable']}"),
        (
            "classes",
            f"{m['num_classes_tested']}"
            + (f" <small>of {m['num_classes']}</small>" if m["num_classes_tested"] != m["num_classes"] else ""),
        ),
    ]
    tests = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)
    name = escape(str(card.backbone.get("name", "model")))
    return (
        f"<header><h1>Test report · {name} · {card.input_size} px</h1>"
        f'<div class="hero"><b>{_percent(m["accuracy"])}</b><span>of the test images are classified right<br>'
        f'<span class="soft">{m["num_correct"]:,} of {m["num_images"]:,}; '
        f"95 % interval {_percent(low)} to {_percent(high)} (Wilson)</span></span></div>"
        f'<div class="range" title="0 to 100 %"><i style="left:{low:.2%};width:{high - low:.2%}"></i>'
        f'<u style="left:{m["accuracy"]:.2%}"></u></div>'
        f'<dl class="tiles">{tests}</dl></header>'
    )


def problems(study: Evaluation) -> str:
    """Unreadable images, files that are no images, near-duplicates: what a reader must know before the numbers."""
    m = study.metrics
    parts = []
    if m["unreadable"]:
        rows = [[escape(path), escape(why)] for path, why in list(m["unreadable"].items())[:MAX_ROWS]]
        parts.append(
            f'<p class="alert"><b>{_images(len(m["unreadable"]))} could not be read,</b> counted as wrong in'
            f" accuracy, recall and F1.{_more(m['unreadable'])}</p>" + table(["image", "why"], rows)
        )
    if m["no_images_by_name"]:
        names = ", ".join(map(escape, m["no_images_by_name"][:MAX_ROWS]))
        parts.append(f"<p>{len(m['no_images_by_name'])} files are no images by their names: {names}.</p>")
    return section("problems", "Files", *parts)


def training_curves(rows: Sequence[Mapping[str, float]]) -> str:
    """Loss and accuracy over epochs, from ``training/metrics.csv``."""
    charts = []
    for quantity, label, percent in (("loss", "loss", False), ("acc", "accuracy", True)):
        series = [
            Series(name, points, style)
            for part, name, style in (("train", "training", "quiet"), ("val", "validation", "main"))
            if (points := [(r["epoch"] + 1, r[f"{part}/{quantity}"]) for r in rows if f"{part}/{quantity}" in r])
        ]
        if series:
            charts.append(f"<div><h3>{label.capitalize()}</h3>")
            charts.append(line_chart(series, label=f"{label} over epochs", x_label="epoch", percent=percent) + "</div>")
    return section("training", "Training", f'<div class="columns">{"".join(charts)}</div>' if charts else "")


def confusions(study: Evaluation) -> str:
    """The confusion matrix and the most frequent confusions in words."""
    classes = study.card.class_names
    matrix = np.array(study.metrics["confusion_matrix"]["counts"])
    wrong = [
        (int(matrix[y, x]), y, x) for y in range(len(classes)) for x in range(len(classes)) if x != y and matrix[y, x]
    ]
    wrong.sort(key=lambda row: (-row[0], row[1], row[2]))
    rows = [
        [escape(classes[y]), escape(classes[x]), str(n), _percent(n / matrix[y].sum())]
        for n, y, x in wrong[:MAX_CONFUSIONS]
    ]
    words = "<h3>Most frequent confusions</h3>" + table(["target", "taken for", "#images", "#of the class"], rows)
    drawn = (
        f'<div><div class="scroll">{confusion_svg(matrix, classes)}</div>'
        '<p class="said soft" id="said">Point at a cell or touch it.</p>'
        '<p class="legend"><span><i></i>right</span><span><i class="wrong"></i>wrong; stronger = a larger share of the'
        " row</span></p></div>"
    )
    beside = len(classes) <= BESIDE
    return section(
        "confusion",
        "Confusion matrix",
        f"<div{' class=beside' if beside else ''}>{drawn}<div>{words if rows else ''}</div></div>",
        lead="A row for each class, a column for each prediction.",
    )


def per_class_bars(study: Evaluation) -> str:
    """Recall of each class with its interval, the worst first; all numbers in a table below."""
    rows = study.metrics["per_class"]
    tested = sorted((r for r in rows if r["support"]), key=lambda r: (r["recall"], r["class"]))
    bars = []
    for row in tested:
        low, high = wilson(row["correct"], row["support"])
        title = f"{row['class']}: {row['correct']} of {row['support']}, interval {low:.1%} to {high:.1%}"
        bars.append(
            f'<div class="bar" title="{escape(title)}"><span>{escape(row["class"])}</span><div class="track">'
            f'<i style="width:{row["recall"]:.1%}"></i><u style="left:{low:.1%};width:{high - low:.1%}"></u></div>'
            f"<em>{_percent(row['recall'])}</em></div>"
        )
    cells = [
        [
            escape(r["class"]),
            str(r["support"]),
            f"{r['precision']:.3f}",
            f"{r['recall']:.3f}",
            f"{r['f1']:.3f}",
            escape(r["most_confused_with"]),
        ]
        for r in rows
    ]
    head = ["class", "#images", "#precision", "#recall", "#F1", "most often taken for"]
    return section(
        "classes",
        "Classes",
        f'<div class="bars">{"".join(bars)}</div>',
        f"<details><summary>Precision, recall and F1 of every class</summary>{table(head, cells)}</details>",
        lead="Share of each class's images that is recognised (recall) with its 95 % interval, the worst first.",
    )


def calibration(study: Evaluation) -> str:
    """Reliability diagram, errors before and after."""
    m = study.metrics
    rows = [
        ["calibration error", _percent(m["ece_uncalibrated"]), _percent(m["ece"])],
        ["log loss", f"{m['log_loss_uncalibrated']:.3f}", f"{m['log_loss']:.3f}"],
    ]
    return section(
        "calibration",
        "Can its probabilities be trusted?",
        '<div class="columns"><div>',
        reliability_diagram(m["reliability"]),
        "</div><div>",
        table(["", "#before", "#after"], rows),
        f"<p class=soft>Temperature {m['temperature']:.3f}, fitted on validation images. Points on the dotted line"
        " would be perfect: of predictions with 80 % probability, 80 % are right. Larger points stand for more"
        " images. The calibration error is the mean distance from the line (15 bins, weighted by their images)."
        "</p></div></div>",
    )


def gallery(anchor: str, title: str, lead: str, cards: Sequence[Card], *, toggle: bool = False) -> str:
    """Images with captions; ``toggle`` adds a switch for the heat maps."""
    if not cards:
        return ""
    figures = "".join(_figure(card) for card in cards)
    switch = (
        '<label><input type="checkbox" class="toggle" checked> show where the model looked</label>' if toggle else ""
    )
    return section(anchor, title, switch, f'<div class="gallery">{figures}</div>', lead=lead)


def _figure(card: Card) -> str:
    heat = f'<img class="heat" alt="" src="{card.heat}">' if card.heat else ""
    return (
        f'<figure title="{escape(card.note)}"><div><img alt="{escape(card.note)}" src="{card.image}">{heat}</div>'
        f"<figcaption>{card.caption}</figcaption></figure>"
    )


def unknowns(study: Evaluation) -> str:
    """How reliably out-of-distribution images are rejected."""
    found, p = study.metrics["unknown"], study.predictions
    if not found["against"]:
        return ""
    known = np.array([s for s in study.columns["unknown_score"] if s != ""], dtype=np.float64)
    groups = [("test images", "main", known)]
    for kind, name, style in (("noise", "drawn noise", "quiet"), ("outside", "images of other things", "third")):
        scores = np.array([r["score"] for r in study.unknown_scores if r["kind"] == kind])
        if len(scores):
            groups.append((name, style, scores))
    named = {"noise": "drawn noise, blobs, stripes", "outside": "images of other things"}
    rows = [
        [
            named[kind],
            str(row["num_images"]),
            f"{row['auroc']:.3f}",
            _percent(row["rejected"]) if "rejected" in row else "–",
        ]
        for kind, row in found["against"].items()
    ]
    score = {"max_probability": "the highest probability", "energy": "the energy (log-sum-exp of the logits)"}
    if found["threshold"] is None:
        rule = "The model folder has no threshold."
    else:
        rule = (
            f"Threshold {found['threshold']:.4g}, chosen on validation images; it would turn away"
            f" {_percent(found['known_rejected'])} of the {int(p.outcome.readable.sum()):,} test images."
        )
    return section(
        "unknown",
        "None of these",
        '<div class="columns"><div>',
        histogram(groups, label="distribution of scores", threshold=found["threshold"]),
        "</div><div>",
        table(["compared with test images", "#images", "#AUROC", "#rejected"], rows),
        f"<p class=soft>{rule} Applied by prediction only when asked for.</p></div></div>",
        lead=f"Images of none of the classes should score low. The score is {score[found['score']]}.",
    )


def near_duplicates(study: Evaluation) -> str:
    """Pairs across train and test: there must be none."""
    found = study.metrics["near_duplicates"]
    if not found["checked"]:
        return ""
    if not found["pairs"]:
        text = "No test image was found among the training images, near-duplicates included."
        return section("leakage", "Train and test", f'<p class="fine">{text}</p>')
    rows = [[escape(r["test"]), escape(r["train"]), str(r["bits"])] for r in found["pairs"][:MAX_ROWS]]
    return section(
        "leakage",
        "Train and test",
        f'<p class="alert"><b>{_images(len(found["pairs"]))} of the test data also in the training data.</b>'
        f" The accuracy may be too good.{_more(found['pairs'])}</p>",
        table(["test image", "training image", "#bits of 128 that differ"], rows),
    )


def comparison(study: Evaluation, cards: Sequence[Card]) -> str:
    """Two models side by side, the paired test and images on which they differ."""
    c = study.metrics.get("compare")
    if c is None:
        return ""
    m, o = study.metrics, c["other"]
    rows = [
        ["accuracy", *(_percent(x["accuracy"]) for x in (m, o))],
        ["macro F1", *(f"{x['macro_f1']:.3f}" for x in (m, o))],
        ["log loss", *(f"{x['log_loss']:.3f}" for x in (m, o))],
        ["calibration error", *(_percent(x["ece"]) for x in (m, o))],
    ]
    p = c["mcnemar_p"]
    verdict = "a difference that chance hardly explains" if p < 0.05 else "no difference that chance could not explain"
    bars = "".join(
        f'<div class="bar"><span>{escape(r["class"])}</span><div class="track"><i style="width:{r["this"]:.1%}"></i>'
        f'<i class="second" style="width:{r["other"]:.1%}"></i></div>'
        f"<em>{(r['this'] - r['other']) * 100:+.0f}</em></div>"
        for r in sorted(c["recall"], key=lambda r: (r["this"] - r["other"], r["class"]))
    )
    figures = "".join(_figure(card) for card in cards)
    return section(
        "compare",
        "Compared with another model",
        '<div class="columns"><div>',
        table(["", "#this", "#other"], rows),
        f"<p>Only this one is right on {_images(c['only_this_right'])}, only the other on {c['only_other_right']};"
        f" both on {c['both_right']}, neither on {c['both_wrong']}.</p>"
        f"<p>McNemar's exact test: p = {p:.3g}, {verdict}.</p></div><div>",
        '<h3>Recall by class</h3><p class="legend"><span><i></i>this</span><span><i class="third"></i>other</span></p>',
        f"{bars}</div></div>",
        f'<h3>Images that only one has right</h3><div class="gallery">{figures}</div>' if figures else "",
    )


def slices(study: Evaluation) -> str:
    """Accuracy by image size, source, licence."""
    rows = [
        [
            escape(r["by"]),
            escape(r["slice"]),
            str(r["num_images"]),
            _percent(r["accuracy"]),
            f"{_percent(r['interval'][0])} to {_percent(r['interval'][1])}",
        ]
        for r in study.metrics.get("slices", [])
    ]
    return section(
        "slices", "Slices", table(["by", "slice", "#images", "#accuracy", "#95 % interval"], rows) if rows else ""
    )


def robustness(study: Evaluation) -> str:
    """Accuracy under blur, noise, JPEG and brightness."""
    rows = study.metrics.get("robustness", [])
    if not rows:
        return ""
    styles = dict(zip(dict.fromkeys(r["kind"] for r in rows), ("main", "quiet", "third", "fourth"), strict=True))
    clean = study.metrics["accuracy"]
    series = [
        Series(kind, [(0, clean), *((r["strength"], r["accuracy"]) for r in rows if r["kind"] == kind)], style)
        for kind, style in styles.items()
    ]
    chart = line_chart(series, label="accuracy under perturbations", x_label="strength (0 = as it is)", percent=True)
    cells = [[escape(kind), *(_percent(y) for _, y in s.points)] for kind, s in zip(styles, series, strict=True)]
    return section(
        "robustness",
        "Harder images",
        f'<div class="columns"><div>{chart}</div><div>{table(["", "#as is", "#1", "#2", "#3"], cells)}</div></div>',
    )


def data_facts(study: Evaluation, train_counts: Mapping[str, int] | None) -> str:
    """Counts, sources, licences, fingerprints."""
    m = study.metrics
    parts = []
    names = {"status": "Candidates", "source": "Sources of the kept", "license": "Licences of the kept"}
    for key, title in names.items():
        counts = m["data"].get(key) or {}
        if counts:
            parts.append(f"<div><h3>{title}</h3>")
            parts.append(table([key, "#images"], [[escape(k), f"{v:,}"] for k, v in counts.items()]) + "</div>")
    support = {r["class"]: r["support"] for r in m["per_class"]}
    head = ["class", *(["#train"] if train_counts else []), "#test"]
    rows = [
        [escape(n), *([f"{train_counts.get(n, 0):,}"] if train_counts else []), f"{support[n]:,}"]
        for n in study.card.class_names
    ]
    counts_table = f"<details><summary>Images of every class</summary>{table(head, rows)}</details>"
    prints = table(
        ["content", "fingerprint (sha256)"],
        [
            ["test data", f"<code>{m['test_data_fingerprint']}</code>"],
            ["training data", f"<code>{escape(study.card.training_data_fingerprint)}</code>"],
            ["model weights", f"<code>{escape(study.card.sha256)}</code>"],
        ],
    )
    return section(
        "data", "Data", f'<div class="columns">{"".join(parts)}</div>' if parts else "", counts_table, prints
    )


def reproduction(study: Evaluation, config: str, environment: Mapping[str, str]) -> str:
    """How the model was configured, with what it ran, and the command that gives this report again."""
    flags = [name for name in ("slices", "robustness") if name in study.metrics]
    command = "python -m objrec.evaluate model_dir=MODEL test_dir=TEST" + "".join(f" evaluate.{f}=true" for f in flags)
    if study.other is not None:
        command += " evaluate.compare=OTHER_MODEL"
    versions = table(["", "version"], [[escape(k), escape(v)] for k, v in environment.items()])
    commit = study.card.git_commit
    return section(
        "reproduce",
        "How to get this again",
        f"<pre>{escape(command)}</pre>",
        "<p class=soft>with the model and the test data whose fingerprints are above"
        + (f"; the model was trained at commit <code>{escape(commit[:12])}</code>" if commit else "")
        + ".</p>",
        f"<details><summary>Configuration of the training</summary><pre>{escape(config)}</pre></details>"
        if config
        else "",
        f"<details><summary>Environment</summary>{versions}</details>",
    )


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _more(rows: Any) -> str:
    return f" The first {MAX_ROWS} are named here; the rest is in metrics.json." if len(rows) > MAX_ROWS else ""
