"""The gate: like with like, numbers as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from objrec.registry.gate import REFUSED, decide, mcnemar, p_better
from objrec.registry.records import Record


@dataclass
class InMemory:
    record: Record | None = None

    def production(self) -> Record | None:
        return self.record


def record(accuracy: float | None, *, data: str = "d", test: str = "t", sha256: str = "a" * 64) -> Record:
    return Record(
        sha256=sha256, training_data_fingerprint=data, accuracy=accuracy, test_data_fingerprint=test, num_images=100
    )


def never(_: Record) -> Record:
    raise AssertionError("measured again although both accuracies are of the same test set")


def test_first_model_is_deployed() -> None:
    assert decide(record(0.1), InMemory(), remeasure=never).rule == "first"


def test_changed_training_data_is_deployed_even_when_worse() -> None:
    decision = decide(record(0.1, data="new"), InMemory(record(0.9)), remeasure=never)
    assert decision.deploy and decision.rule == "new_data"


@pytest.mark.parametrize(("new", "old", "deploy"), [(0.91, 0.9, True), (0.9, 0.9, False), (0.89, 0.9, False)])
def test_same_training_data_needs_a_higher_accuracy(new: float, old: float, deploy: bool) -> None:
    decision = decide(record(new), InMemory(record(old)), remeasure=never)
    assert decision.deploy is deploy
    assert deploy or REFUSED in decision.reason


def test_accuracies_are_numbers_not_texts() -> None:
    assert decide(record(1.0), InMemory(record(9e-1)), remeasure=never).deploy
    assert not decide(record(9e-5), InMemory(record(0.8)), remeasure=never).deploy  # "9e-05" > "0.8" as text


def test_changed_test_set_measures_production_on_the_new_one_first() -> None:
    asked: list[Record] = []

    def remeasure(current: Record) -> Record:
        asked.append(current)
        return current.model_copy(update={"accuracy": 0.7, "test_data_fingerprint": "new"})

    decision = decide(record(0.8, test="new"), InMemory(record(0.9)), remeasure=remeasure)
    assert asked and decision.deploy and "0.7000" in decision.reason


def test_min_improvement() -> None:
    assert not decide(record(0.905), InMemory(record(0.9)), remeasure=never, min_improvement=0.01).deploy
    assert decide(record(0.92), InMemory(record(0.9)), remeasure=never, min_improvement=0.01).deploy
    for new, old, least in ((0.8, 0.7, 0.1), (0.95, 0.9, 0.05), (0.3, 0.1, 0.2)):  # just that much is not more
        assert not decide(record(new), InMemory(record(old)), remeasure=never, min_improvement=least).deploy


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -0.1, 1.1])
def test_an_accuracy_that_is_none_is_an_error_even_for_the_first(value: float | None) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        decide(record(value), InMemory(), remeasure=never)


def test_significance_is_asked_only_of_a_better_model() -> None:
    called = []

    def p_value(*_: Record) -> float:
        called.append(1)
        return 0.2

    worse = decide(record(0.8), InMemory(record(0.9)), remeasure=never, p_value=p_value)
    assert worse.rule == "not_higher" and not called
    better = decide(record(0.95), InMemory(record(0.9)), remeasure=never, p_value=p_value)
    assert better.rule == "not_significant" and not better.deploy
    assert decide(record(0.95), InMemory(record(0.9)), remeasure=never, p_value=lambda *_: 0.01).deploy


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = [True] * 12 + [False] * 2 + [True] * 50
    second = [False] * 12 + [True] * 2 + [True] * 50
    assert mcnemar(first, second) == pytest.approx(0.0129394, abs=1e-6)  # binom.test(2, 14): 2 * 106 / 2**14
    assert mcnemar(first, first) == 1.0
    assert mcnemar([True], [False]) == 1.0
    assert mcnemar([True] * 3000 + [False] * 2000, [False] * 3000 + [True] * 2000) == pytest.approx(
        1.30023e-45, rel=1e-4
    )


def test_what_speaks_against_a_candidate_is_not_significant_for_it() -> None:
    many, few = [True] * 76, [True] * 16 + [False] * 60
    assert p_better(few, many) == 1.0 and p_better(many, many) == 1.0
    assert p_better(many, few) == mcnemar(many, few) < 1e-10
