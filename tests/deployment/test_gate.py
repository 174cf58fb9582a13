"""The gate: like with like, numbers as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from objrec.config.errors import UserError
from objrec.deployment.gate import (
    REFUSED,
    Decision,
    Rules,
    Standing,
    Unusable,
    decide,
    p_better,
    warn_if_trivial,
)
from objrec.inference.paired_test import mcnemar
from objrec.model_registry.records import Record

ORIGINAL = Rules()


@dataclass
class InMemory:
    record: Record | None = None

    def production(self) -> Record | None:
        return self.record


def record(accuracy: float | None, *, data: str = "d", sha256: str = "a" * 64, **more: str | None) -> Record:
    return Record(
        sha256=sha256,
        training_data_fingerprint=data,
        accuracy=accuracy,
        test_data_fingerprint="t",
        num_images=100,
        **more,  # type: ignore[arg-type]
    )


def never(_: Record) -> Standing:
    raise AssertionError("compared with a model in production, and there is none")


def gate(
    new: float, old: float, *, data: str = "d", rules: Rules = ORIGINAL, left_out: int = 0, count: int = 100
) -> Decision:
    """Decide on a candidate beside a model in production, as both do on the test set."""
    standing = Standing(new, old, count, left_out=left_out)
    return decide(record(new, data=data), InMemory(record(old)), compare=lambda _: standing, rules=rules)


def test_first_model_is_deployed() -> None:
    assert decide(record(0.1), InMemory(), compare=never).rule == "first"


def test_changed_training_data_is_deployed_even_when_worse_and_both_accuracies_are_named() -> None:
    decision = gate(0.1, 0.9, data="new")
    assert decision.deploy and decision.rule == "new_data"
    assert "0.1000 against 0.9000 in production" in decision.reason


@pytest.mark.parametrize(("new", "old", "deploy"), [(0.91, 0.9, True), (0.9, 0.9, False), (0.89, 0.9, False)])
def test_same_training_data_needs_a_higher_accuracy(new: float, old: float, deploy: bool) -> None:
    decision = gate(new, old)
    assert decision.deploy is deploy
    assert deploy or REFUSED in decision.reason


def test_accuracies_are_numbers_not_texts() -> None:
    assert gate(1.0, 9e-1).deploy
    assert not gate(9e-5, 0.8).deploy  # "9e-05" > "0.8" as text


def test_min_improvement() -> None:
    assert not gate(0.905, 0.9, rules=Rules(min_improvement=0.01)).deploy
    assert gate(0.92, 0.9, rules=Rules(min_improvement=0.01)).deploy
    for new, old, least in ((0.8, 0.7, 0.1), (0.95, 0.9, 0.05), (0.3, 0.1, 0.2)):  # just that much is not more
        assert not gate(new, old, rules=Rules(min_improvement=least)).deploy


def test_max_accuracy_drop_holds_changed_data_to_a_floor() -> None:
    rules = Rules(max_accuracy_drop=0.02)
    refused = gate(0.8, 0.9, data="new", rules=rules)
    assert (refused.deploy, refused.rule) == (False, "accuracy_drop")
    assert "0.8000 against 0.9000 in production" in refused.reason
    assert gate(0.88, 0.9, data="new", rules=rules).deploy and gate(0.95, 0.9, data="new", rules=rules).deploy
    assert gate(0.88, 0.9, rules=rules).rule == "not_higher"  # on the same data the original rule is stricter


def test_min_accuracy_is_for_every_candidate() -> None:
    rules = Rules(min_accuracy=0.5)
    first = decide(record(0.4), InMemory(), compare=never, rules=rules)
    assert (first.deploy, first.rule) == (False, "low_accuracy") and "deploy.min_accuracy=0.5" in first.reason
    assert gate(0.4, 0.9, data="new", rules=rules).rule == "low_accuracy" == gate(0.4, 0.3, rules=rules).rule
    assert "0.4000 against 0.9000" in gate(0.4, 0.9, data="new", rules=rules).reason
    assert gate(0.5, 0.3, rules=rules).deploy
    assert gate(0.4, 0.9, rules=rules).rule == "not_higher"


def test_few_images_are_no_basis_once_some_were_left_out() -> None:
    few = gate(0.9, 0.8, left_out=71, count=29)
    assert (few.deploy, few.rule) == (False, "few_images") and "71" in few.reason and "add test images" in few.reason
    assert gate(0.9, 0.8, left_out=70, count=30).deploy and gate(0.9, 0.8, count=5).deploy
    assert gate(0.9, 0.8, data="new", left_out=71, count=29).deploy  # the original rule
    rules = Rules(max_accuracy_drop=0.1)
    assert gate(0.9, 0.8, data="new", left_out=71, count=29, rules=rules).rule == "few_images"
    none = Standing(None, None, 0, left_out=100)
    for data, deploy in (("d", False), ("new", True)):
        decision = decide(record(0.9, data=data), InMemory(record(0.8)), compare=lambda _: none)
        assert decision.deploy is deploy and "no test image is left" in decision.reason


def test_a_production_model_that_is_unusable_keeps_no_sound_candidate_out() -> None:
    def compare(_: Record) -> Standing:
        raise Unusable("it is gone")

    for data, rule in (("d", "unusable"), ("new", "new_data")):
        decision = decide(record(0.1, data=data), InMemory(record(0.9)), compare=compare)
        assert decision.deploy and decision.rule == rule and "it is gone" in decision.reason
    low = decide(record(0.1), InMemory(record(0.9)), compare=compare, rules=Rules(min_accuracy=0.2))
    assert low.rule == "low_accuracy"


def test_a_failed_measurement_is_an_error_where_the_decision_depends_on_it() -> None:
    def compare(_: Record) -> Standing:
        raise UserError("killed")

    current = InMemory(record(0.9))
    assert decide(record(0.1, data="new"), current, compare=compare).deploy
    with pytest.raises(UserError, match="killed"):
        decide(record(0.1), current, compare=compare)
    with pytest.raises(UserError, match="killed"):
        decide(record(0.1, data="new"), current, compare=compare, rules=Rules(max_accuracy_drop=0.1))


@pytest.mark.parametrize(
    ("split", "crops", "settings", "said"),
    [
        ("s", "c", "p", None),
        ("s", "c2", "p2", "changed: preprocessing"),
        ("s", "c2", "p", "changed: preprocessing"),
        ("s2", "c2", "p", "changed: split"),
        ("s2", "c2", "p2", "changed: split and preprocessing"),
        (None, None, None, None),
    ],
)
def test_the_reason_names_what_changed_and_that_is_not_new_data(
    split: str | None, crops: str | None, settings: str | None, said: str | None
) -> None:
    current = record(0.9, split_fingerprint="s", crops_fingerprint="c", preprocessing="p")
    candidate = record(0.8, split_fingerprint=split, crops_fingerprint=crops, preprocessing=settings)
    decision = decide(candidate, InMemory(current), compare=lambda _: Standing(0.8, 0.9, 100))
    assert decision.rule == "not_higher" and REFUSED in decision.reason
    assert said in decision.reason if said else "changed" not in decision.reason


def test_a_record_of_an_older_version_named_train_dir() -> None:
    old = record(0.9, data="train-dir")
    new = record(0.8, data="raw", split_fingerprint="s", crops_fingerprint="train-dir")
    other = record(0.8, data="raw", split_fingerprint="s", crops_fingerprint="another")
    assert new.has_the_data_of(old) and old.has_the_data_of(new) and not other.has_the_data_of(old)


def test_a_model_no_better_than_the_commonest_class_is_warned_about() -> None:
    decision = Decision(True, "first", "deployed")
    assert "always answering 'cat'" in warn_if_trivial(decision, 0.75, {"dog": 1, "cat": 3}).reason
    assert warn_if_trivial(decision, 0.76, {"dog": 1, "cat": 3}) == decision == warn_if_trivial(decision, 0.1, {})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -0.1, 1.1])
def test_an_accuracy_that_is_none_is_an_error_even_for_the_first(value: float | None) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        decide(record(value), InMemory(), compare=never)


def test_significance_is_asked_only_of_a_better_model() -> None:
    called = []
    rules = Rules(significance_level=0.05)

    def judge(new: float, p: float) -> Decision:
        def p_value() -> float:
            called.append(1)
            return p

        standing = Standing(new, 0.9, 100, p_value=p_value)
        return decide(record(new), InMemory(record(0.9)), compare=lambda _: standing, rules=rules)

    assert judge(0.8, 0.2).rule == "not_higher" and not called
    better = judge(0.95, 0.2)
    assert better.rule == "not_significant" and not better.deploy
    assert judge(0.95, 0.01).deploy


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(12, 2) == mcnemar(2, 12) == pytest.approx(0.0129394, abs=1e-6)  # binom.test(2, 14): 2 * 106 / 2**14
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 0) == 1.0
    assert mcnemar(3000, 2000) == pytest.approx(1.30023e-45, rel=1e-4)


def test_what_speaks_against_a_candidate_is_not_significant_for_it() -> None:
    many, few = [True] * 76, [True] * 16 + [False] * 60
    assert p_better(few, many) == 1.0 and p_better(many, many) == 1.0
    assert p_better(many, few) == mcnemar(60, 0) < 1e-10
