"""May this model replace the one in production? A pure decision, the same for every registry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from objrec.registry.records import Record

REFUSED = "not deployed: same training data, accuracy not higher"


class Registry(Protocol):
    """All that the gate asks of a registry: local folder, cloud, or a test's dictionary."""

    def production(self) -> Record | None:
        """The model that serves, or None before the first deployment."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer, for people (``reason``) and machines (``rule``)."""

    deploy: bool
    rule: Literal["first", "new_data", "higher", "not_higher", "not_significant"]
    reason: str


def decide(
    candidate: Record,
    registry: Registry,
    *,
    remeasure: Callable[[Record], Record],
    min_improvement: float = 0.0,
    p_value: Callable[[Record, Record], float] | None = None,
    significance_level: float = 0.05,
) -> Decision:
    """Compare a candidate with the model in production, like with like.

    Args:
        remeasure: evaluates the model in production on the candidate's test set and returns its record with the new
            accuracy. Called only when the two accuracies at hand are not of the same test set.
        min_improvement: by how much, in accuracy, the candidate must exceed production.
        p_value: when given, a better candidate must also be better beyond chance: returns the p-value of a paired
            test on the candidate's test set (``p_better``), and at most ``significance_level`` passes.

    Raises:
        ValueError: when the candidate's accuracy is missing or not a number from 0 to 1.
    """
    accuracy = candidate.accuracy
    if accuracy is None or math.isnan(accuracy) or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy!r}, not a number from 0 to 1")
    current = registry.production()
    if current is None:
        return Decision(True, "first", f"deployed: the first model, accuracy {accuracy:.4f}")
    if current.training_data_fingerprint != candidate.training_data_fingerprint:
        return Decision(True, "new_data", f"deployed: the training data changed, accuracy {accuracy:.4f}")
    if current.accuracy is None or current.test_data_fingerprint != candidate.test_data_fingerprint:
        current = remeasure(current)
    before = current.accuracy
    assert before is not None
    numbers = f"{accuracy:.4f} against {before:.4f} in production"
    if not round(accuracy - before - min_improvement, 9) > 0:  # 0.95 is not more than 0.05 above 0.9, as floats have it
        required = f", {min_improvement:g} more required" if min_improvement else ""
        return Decision(False, "not_higher", f"{REFUSED} ({numbers}{required})")
    if p_value is not None:
        p = p_value(candidate, current)
        if p > significance_level:
            return Decision(
                False,
                "not_significant",
                f"not deployed: same training data, accuracy higher but within chance ({numbers}, p = {p:.3f})",
            )
        numbers += f", p = {p:.3g}"
    return Decision(True, "higher", f"deployed: same training data, accuracy higher ({numbers})")


def mcnemar(first_right: list[bool], second_right: list[bool]) -> float:
    """Return the two-sided exact p-value that two classifiers do equally well on the same pictures.

    Only pictures on which exactly one of them is right tell them apart; under equality each falls to either side like a
    coin. Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    assert len(first_right) == len(second_right)
    only_first = sum(a and not b for a, b in zip(first_right, second_right, strict=True))
    only_second = sum(b and not a for a, b in zip(first_right, second_right, strict=True))
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    ratio: float = 2 * tail / 2**n  # of whole numbers, which have no largest
    return min(1.0, ratio)


def p_better(candidate_right: list[bool], current_right: list[bool]) -> float:
    """Return McNemar's p-value, or 1 where the candidate is not right more often: nothing then speaks for it."""
    if sum(candidate_right) <= sum(current_right):
        return 1.0
    return mcnemar(candidate_right, current_right)
