"""May this model replace the one in production? A pure decision, the same for every registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from objrec.config.errors import UserError
from objrec.inference.paired_test import mcnemar
from objrec.model_registry.records import Record

REFUSED = "not deployed: same training data, accuracy not higher"
FEW = 30  # test images: of fewer, one more right answer is worth three points and more


class Registry(Protocol):
    """All that the gate asks of a registry: local folder, cloud, or a test's dictionary."""

    def production(self) -> Record | None:
        """The model that serves, or None before the first deployment."""


class Unusable(Exception):
    """The model in production is damaged or gone: nothing can be compared with it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a candidate must meet; the defaults are the original rule.

    Attributes:
        min_improvement: by how much, in accuracy, it must exceed production on the same training data.
        significance_level: when given, a better candidate must also be better beyond chance: the p-value of a paired
            test is at most this.
        min_accuracy: when given, no candidate below it is deployed.
        max_accuracy_drop: when given, a candidate of other training data may be worse than production by this at most.
    """

    min_improvement: float = 0.0
    significance_level: float | None = None
    min_accuracy: float | None = None
    max_accuracy_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Two models on the same test images.

    Attributes:
        candidate, production: their accuracies; None where no image is left.
        num_images: how many images these are of.
        left_out: how many images of the test set are not among them, because one of the two has trained on them.
        p_value: of a paired test that the candidate is better.
    """

    candidate: float | None
    production: float | None
    num_images: int
    left_out: int = 0
    p_value: Callable[[], float] = lambda: 1.0

    @property
    def few(self) -> bool:
        """Whether too few images are left to compare on. What the user gave as a test set is never too small."""
        return self.left_out > 0 and self.num_images < FEW

    def __str__(self) -> str:
        if self.candidate is None or self.production is None:
            return f"no test image is left that neither model has trained on: add at least {FEW}"
        text = f"{self.candidate:.4f} against {self.production:.4f} in production"
        if self.left_out:
            text += f" on {self.num_images} test images, without {self.left_out} that one of the two has trained on"
        return f"{text}: add test images" if self.few else text


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer, for people (``reason``) and machines (``rule``)."""

    deploy: bool
    rule: Literal[
        "first",
        "new_data",
        "higher",
        "unusable",
        "not_higher",
        "not_significant",
        "few_images",
        "accuracy_drop",
        "low_accuracy",
    ]
    reason: str


def decide(
    candidate: Record, registry: Registry, *, compare: Callable[[Record], Standing], rules: Rules = Rules()
) -> Decision:
    """Compare a candidate with the model in production, like with like.

    Args:
        compare: returns how both do on the candidate's test set. Raises ``Unusable`` when production is damaged or
            gone, UserError when it cannot be measured.

    Raises:
        ValueError: when the candidate's accuracy is missing or not a number from 0 to 1.
        UserError: of ``compare``, where the decision depends on it.
    """
    accuracy = candidate.accuracy
    if accuracy is None or math.isnan(accuracy) or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy!r}, not a number from 0 to 1")
    current = registry.production()
    numbers = f"{accuracy:.4f}"
    if current is None:
        decision = Decision(True, "first", f"deployed: the first model, accuracy {numbers}")
    else:
        decision, numbers = _compared(candidate, current, compare, rules)
    if rules.min_accuracy is not None and accuracy < rules.min_accuracy and decision.deploy:
        least = f"deploy.min_accuracy={rules.min_accuracy:g}"
        return Decision(False, "low_accuracy", f"not deployed: accuracy below {least} ({numbers})")
    return decision


def _compared(
    candidate: Record, current: Record, compare: Callable[[Record], Standing], rules: Rules
) -> tuple[Decision, str]:
    """Return the decision, and the accuracies that it names."""
    assert candidate.accuracy is not None
    same = candidate.has_the_data_of(current)
    numbers = f"{candidate.accuracy:.4f}"
    try:
        standing = compare(current)
        numbers = f"{numbers}; {standing}" if standing.candidate is None else str(standing)
        if same:
            return _of_the_same_data(standing, rules, _changes(candidate, current)), numbers
        return _of_other_data(standing, rules), numbers
    except Unusable as error:
        why = "the training data changed, and the" if not same else "the"
        reason = f"deployed: {why} model in production cannot be compared with ({error}), accuracy {numbers}"
        return Decision(True, "unusable" if same else "new_data", reason), numbers
    except UserError as error:
        if same or rules.max_accuracy_drop is not None:
            raise
        return Decision(True, "new_data", f"deployed: the training data changed, accuracy {numbers} ({error})"), numbers


def _of_the_same_data(standing: Standing, rules: Rules, changes: str) -> Decision:
    numbers = f"{standing}{changes}"
    if standing.few or standing.candidate is None or standing.production is None:
        return Decision(
            False,
            "few_images",
            f"not deployed: same training data, and under {FEW} test images to compare on ({numbers})",
        )
    more = standing.candidate - standing.production - rules.min_improvement
    if not round(more, 9) > 0:  # 0.95 is not more than 0.05 above 0.9, as floats have it
        required = f", {rules.min_improvement:g} more required" if rules.min_improvement else ""
        return Decision(False, "not_higher", f"{REFUSED} ({numbers}{required})")
    if rules.significance_level is not None:
        p = standing.p_value()
        if p > rules.significance_level:
            within = "not deployed: same training data, accuracy higher but within chance"
            return Decision(False, "not_significant", f"{within} ({numbers}, p = {p:.3f})")
        numbers += f", p = {p:.3g}"
    return Decision(True, "higher", f"deployed: same training data, accuracy higher ({numbers})")


def _of_other_data(standing: Standing, rules: Rules) -> Decision:
    drop = rules.max_accuracy_drop
    if drop is not None:
        if standing.few or standing.candidate is None or standing.production is None:
            reason = f"not deployed: the training data changed, and deploy.max_accuracy_drop={drop:g} cannot be checked"
            return Decision(False, "few_images", f"{reason} ({standing})")
        if round(standing.production - standing.candidate - drop, 9) > 0:
            reason = f"not deployed: the training data changed, accuracy lower by more than max_accuracy_drop={drop:g}"
            return Decision(False, "accuracy_drop", f"{reason} ({standing})")
    return Decision(True, "new_data", f"deployed: the training data changed ({standing})")


def _changes(candidate: Record, current: Record) -> str:
    """Say what differs between two trainings on the same data, as far as the records show."""
    if current.split_fingerprint is None or candidate.split_fingerprint is None:
        return ""
    split = current.split_fingerprint != candidate.split_fingerprint
    crops = current.crops_fingerprint != candidate.crops_fingerprint
    preprocessing = current.preprocessing != candidate.preprocessing or (crops and not split)
    changed = [*(["split"] if split else []), *(["preprocessing"] if preprocessing else [])]
    return f"; changed: {' and '.join(changed)}" if changed else ""


def warn_if_trivial(decision: Decision, accuracy: float, counts: Mapping[str, int]) -> Decision:
    """Add a warning where a model is not better than always answering the commonest class of its test set.

    Args:
        counts: the number of test images of each class; empty where they are not known.
    """
    if not counts:
        return decision
    label = max(counts, key=lambda name: counts[name])
    share = counts[label] / sum(counts.values())
    if accuracy > share:
        return decision
    warning = f"warning: an accuracy of {accuracy:.4f} is not above {share:.4f}, that of always answering '{label}'"
    return replace(decision, reason=f"{decision.reason}; {warning}")


def p_better(candidate_right: list[bool], current_right: list[bool]) -> float:
    """Return McNemar's p-value, or 1 where the candidate is not right more often: nothing then speaks for it."""
    only_candidate = sum(a and not b for a, b in zip(candidate_right, current_right, strict=True))
    only_current = sum(b and not a for a, b in zip(candidate_right, current_right, strict=True))
    return mcnemar(only_candidate, only_current) if only_candidate > only_current else 1.0
