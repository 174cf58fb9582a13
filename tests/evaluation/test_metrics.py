"""``predictions.csv`` recomputes every number of ``metrics.json``; scikit-learn and SciPy are the judges."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.evaluation_model import COLOURS, evaluate, write_images, write_model
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics as judge

from objrec.evaluation.metrics import wilson
from objrec.images.image_folder import content_fingerprint
from objrec.inference.paired_test import mcnemar
from objrec.inference.predictor import Predictor
from objrec.inference.scores import softmax

CLASSES = sorted(COLOURS)
Row = dict[str, str]


class Evaluated:
    """A report with everything switched on, read back."""

    def __init__(self, root: Path) -> None:
        self.model = write_model(root / "model", CLASSES, temperature=1.7, unknown=RULE)
        self.other = write_model(root / "other", CLASSES[::-1], seed=9, sharpness=2)
        self.test = write_images(root / "test", CLASSES, count=30)
        (self.test / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
        (self.test / "red" / "notes.txt").write_text("not an image")
        self.train = write_images(root / "train", CLASSES, count=10, seed=5)
        with Image.open(self.test / "blue" / "003.jpg") as image:
            image.save(self.train / "blue" / "leak.png")
        self.outside = write_images(root / "outside", ["grey"], count=8, seed=3)
        self.accuracy, self.report = evaluate(
            root / "out",
            "evaluate.slices=true",
            "evaluate.robustness=true",
            model_dir=self.model,
            test_dir=self.test,
            train_dir=self.train,
            compare_dir=self.other,
            unknown_dir=self.outside,
        )
        self.metrics: dict[str, Any] = json.loads((self.report / "metrics.json").read_text())
        self.rows = read(self.report / "predictions.csv")

    def column(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows])

    def numbers(self, name: str) -> np.ndarray:
        """Of the readable images."""
        return np.array([float(row[name]) for row in self.rows if row["prediction"]])


RULE = {"score": "max_probability", "threshold": 0.45, "keep": 0.95, "auroc": 0.9, "num_images": 100}


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def e(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("metrics"))


def test_headline_numbers(e: Evaluated) -> None:
    m = e.metrics
    target, prediction = e.column("target"), e.column("prediction")
    assert m["num_images"] == len(e.rows) == 121
    assert m["num_unreadable"] == (prediction == "").sum() == 1
    assert m["accuracy"] == pytest.approx(judge.accuracy_score(target, prediction))
    assert 0.5 < m["accuracy"] < 1
    interval = binomtest(m["num_correct"], m["num_images"]).proportion_ci(method="wilson")
    assert m["confidence_interval"] == pytest.approx([interval.low, interval.high])
    for name, average in (("precision", judge.precision_score), ("recall", judge.recall_score), ("f1", judge.f1_score)):
        expected = average(target, prediction, labels=CLASSES, average="macro", zero_division=0)
        assert m[f"macro_{name}"] == pytest.approx(expected), name
    assert m["test_data_fingerprint"] == content_fingerprint(zip(target, e.column("sha256"), strict=True))


def test_probabilities(e: Evaluated) -> None:
    m = e.metrics
    correct = e.column("correct")[e.column("prediction") != ""].astype(int)
    for suffix in ("", "_uncalibrated"):
        of_target = e.numbers(f"target_probability{suffix}")
        loss = judge.log_loss(np.ones(len(of_target)), np.stack([1 - of_target, of_target], 1), labels=[0, 1])
        assert m[f"log_loss{suffix}"] == pytest.approx(loss)
        confidence = e.numbers(f"probability{suffix}")
        edges = np.linspace(0, 1, 16)[1:-1]
        which = np.digitize(confidence, edges, right=True)
        error = sum(
            (which == b).mean() * abs(confidence[which == b].mean() - correct[which == b].mean()) for b in set(which)
        )
        assert m[f"ece{suffix}"] == pytest.approx(error)
    assert m["temperature"] == 1.7


def test_top_k(e: Evaluated) -> None:
    rank = np.array([int(row["target_rank"] or 99) for row in e.rows])
    assert set(e.metrics["top_k"]) == {"2", "3"}
    for k, share in e.metrics["top_k"].items():
        assert share == pytest.approx((rank <= int(k)).mean())


def test_columns_agree_with_the_model_itself(e: Evaluated) -> None:
    """The columns against logits computed here, image by image, with scikit-learn's own top-k."""
    predictor = Predictor.load(e.model)
    readable = [row for row in e.rows if row["prediction"]]
    preprocessing = predictor.card.preprocessing
    logits = np.concatenate(
        [predictor.logits(preprocessing.pixels(e.test / r["path"], max_pixels=10**8)[None]) for r in readable]
    )
    targets = [CLASSES.index(r["target"]) for r in readable]
    ranks = np.array([int(r["target_rank"]) for r in readable])
    for k in (1, 2, 3):
        expected = judge.top_k_accuracy_score(targets, logits, k=k, labels=range(4))
        assert (ranks <= k).mean() == pytest.approx(expected)
    for temperature, name in ((1.7, "probability"), (1.0, "probability_uncalibrated")):
        assert e.numbers(name) == pytest.approx(softmax(logits, temperature).max(axis=1), abs=1e-6)
    assert e.metrics["log_loss"] == pytest.approx(judge.log_loss(targets, softmax(logits, 1.7)), abs=1e-6)


def test_evaluate_and_prediction_agree_on_every_image(e: Evaluated) -> None:
    predictor = Predictor.load(e.model)
    for row in e.rows:
        if row["prediction"]:
            ((label, probability), *_) = predictor.predict([e.test / row["path"]])[0]
            assert (label, probability) == (row["prediction"], pytest.approx(float(row["probability"]), abs=1e-6))


def test_per_class_and_confusion_matrix(e: Evaluated) -> None:
    target, prediction = e.column("target"), e.column("prediction")
    report = judge.classification_report(target, prediction, labels=CLASSES, output_dict=True, zero_division=0)
    for row in e.metrics["per_class"]:
        expected = report[row["class"]]
        assert row["support"] == expected["support"]
        for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[name] == pytest.approx(expected[key])
    labels = [*CLASSES, ""]
    matrix = judge.confusion_matrix(target, prediction, labels=labels)[:-1]
    assert e.metrics["confusion_matrix"]["counts"] == matrix.tolist()
    stored = read(e.report / "per_class.csv")
    assert [float(r["recall"]) for r in stored] == [r["recall"] for r in e.metrics["per_class"]]


def test_unknowns(e: Evaluated) -> None:
    found = e.metrics["unknown"]
    known = e.numbers("unknown_score")
    assert found["known_rejected"] == pytest.approx((known < 0.45).mean())
    drawn = read(e.report / "unknown.csv")
    assert set(found["against"]) == {"noise", "outside"}
    for kind, row in found["against"].items():
        scores = np.array([float(r["score"]) for r in drawn if r["kind"] == kind])
        truth = [1] * len(known) + [0] * len(scores)
        assert row["auroc"] == pytest.approx(judge.roc_auc_score(truth, np.concatenate([known, scores])))
        assert row["rejected"] == pytest.approx((scores < 0.45).mean())
        assert row["num_images"] == len(scores)


def test_slices_and_robustness(e: Evaluated) -> None:
    target, correct = e.column("target"), e.column("correct").astype(int)
    for row in e.metrics["slices"]:
        inside = e.column(f"slice_{row['by']}") == row["slice"]
        assert (row["num_images"], row["accuracy"]) == (inside.sum(), pytest.approx(correct[inside].mean()))
    assert sum(r["num_images"] for r in e.metrics["slices"] if r["by"] == "size") == len(e.rows)
    assert len(e.metrics["robustness"]) == 12
    for row in e.metrics["robustness"]:
        prediction = e.column(f"{row['kind']}_{row['strength']}_prediction")
        assert row["accuracy"] == pytest.approx(judge.accuracy_score(target, prediction))
    dark = [r["accuracy"] for r in e.metrics["robustness"] if r["kind"] == "brightness"]
    assert dark[2] < e.metrics["accuracy"]


def test_comparison(e: Evaluated) -> None:
    c = e.metrics["compare"]
    target, other = e.column("target"), e.column("other_prediction")
    mine, theirs = e.column("prediction") == target, other == target
    assert c["other"]["accuracy"] == pytest.approx(judge.accuracy_score(target, other))
    assert (c["only_this_right"], c["only_other_right"]) == ((mine & ~theirs).sum(), (~mine & theirs).sum())
    assert c["num_different"] == (e.column("prediction") != other).sum()
    expected = binomtest(int((mine & ~theirs).sum()), int((mine ^ theirs).sum())).pvalue
    assert c["mcnemar_p"] == pytest.approx(expected)
    for row in c["recall"]:
        inside = target == row["class"]
        assert (row["this"], row["other"]) == pytest.approx((mine[inside].mean(), theirs[inside].mean()))


def test_suspects_and_duplicates_and_files(e: Evaluated) -> None:
    suspects = {s["path"]: s for s in e.metrics["label_suspects"]["images"]}
    for row in e.rows:
        assert row["suggested_label"] == (suspects[row["path"]]["suggested"] if row["path"] in suspects else "")
    pairs = e.metrics["near_duplicates"]["pairs"]
    assert [(p["test"], p["train"]) for p in pairs] == [("blue/003.jpg", "blue/leak.png")]
    assert list(e.metrics["unreadable"]) == ["red/broken.jpg"]
    assert e.metrics["no_images_by_name"] == ["red/notes.txt"]


def test_a_wrong_label_is_suspected_first(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CLASSES)
    test = write_images(tmp_path / "test", CLASSES, count=20, noise=10)
    for folder in CLASSES:
        for path in (test / folder).glob("*[49].jpg"):
            path.unlink()  # those that are hard on purpose
    shutil.move(test / "green" / "000.jpg", test / "blue" / "moved.jpg")
    _, report = evaluate(tmp_path / "out", model_dir=model, test_dir=test)
    found = json.loads((report / "metrics.json").read_text())["label_suspects"]["images"]
    assert (found[0]["path"], found[0]["suggested"]) == ("blue/moved.jpg", "green")


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 11), (0, 1)])
def test_wilson_agrees_with_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (1, 9), (700, 620), (0, 40)])
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)
