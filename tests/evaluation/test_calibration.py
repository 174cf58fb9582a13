"""Temperature scaling, calibration error and the threshold for unknown images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from objrec.evaluation import calibration, unknown
from objrec.inference.scores import known_score


def overconfident(temperature: float, n: int = 4000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose calibrated temperature is known: targets are drawn from their softmax, then they are scaled."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, classes))
    probabilities = calibration.softmax(logits)
    targets = (probabilities.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return (logits * temperature).astype(np.float32), targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_finds_the_one_that_was_applied(temperature: float) -> None:
    logits, targets = overconfident(temperature)
    fitted = calibration.fit_temperature(logits, targets)
    assert fitted == pytest.approx(temperature, rel=0.08)
    best = log_loss(targets, calibration.softmax(logits, fitted))
    for other in (fitted * 0.97, fitted * 1.03):
        assert log_loss(targets, calibration.softmax(logits, other)) >= best


def test_fit_temperature_stays_in_bounds() -> None:
    right = np.eye(3, dtype=np.float32)
    assert calibration.fit_temperature(right, np.arange(3)) == calibration.TEMPERATURES[0]
    assert calibration.fit_temperature(right, (np.arange(3) + 1) % 3) == calibration.TEMPERATURES[1]
    assert calibration.fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, int)) == 1.0


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx((0.05 * 2 + 0.05 * 2) / 4)


def test_calibration_error_falls_with_the_right_temperature() -> None:
    logits, targets = overconfident(3.0)
    errors = []
    for temperature in (1.0, calibration.fit_temperature(logits, targets)):
        probabilities = calibration.softmax(logits, temperature)
        correct = probabilities.argmax(axis=1) == targets
        errors.append(calibration.expected_calibration_error(probabilities.max(axis=1), correct))
    assert errors[1] < errors[0] / 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_auroc_agrees_with_scikit_learn(known: list[int], other: list[int]) -> None:
    judge = roc_auc_score([1] * len(known) + [0] * len(other), known + other)
    assert unknown.auroc(np.array(known), np.array(other)) == pytest.approx(judge)


def test_threshold_keeps_what_it_promises() -> None:
    rng = np.random.default_rng(1)
    known = rng.normal(0, 1, (1000, 4)) + 6 * np.eye(4)[rng.integers(0, 4, 1000)]
    outliers = rng.normal(0, 1, (500, 4))
    rule = unknown.choose(known, temperature=1.3, outlier_logits=outliers)
    assert json.loads(json.dumps(rule)) == rule
    below = [(known_score(x, rule["score"], 1.3) < rule["threshold"]).mean() for x in (known, outliers)]
    assert below[0] <= 1 - unknown.KEEP and below[1] > 0.7
    assert rule["auroc"] > 0.95


def test_energy_is_chosen_where_it_parts_better() -> None:
    known = np.array([[10.0, 9.0, 0.0]] * 50)  # between two classes, but full of evidence
    outliers = np.array([[2.0, 0.0, -9.0]] * 50)
    assert unknown.choose(known, temperature=1.0, outlier_logits=outliers)["score"] == "energy"


def test_outliers_are_drawn_the_same_every_time() -> None:
    drawn = unknown.outlier_pixels(16, 8)
    assert drawn.shape == (8, 16, 16, 3) and drawn.dtype == np.uint8
    assert (drawn == unknown.outlier_pixels(16, 8)).all()
    assert len({d.tobytes() for d in drawn}) == 8
