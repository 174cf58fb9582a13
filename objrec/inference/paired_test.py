"""Two classifiers on the same images: is the better one better beyond chance? Imports nothing heavy."""

from __future__ import annotations

import math


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value that two classifiers do equally well.

    Only images on which exactly one of them is right distinguish them; if they are equal, each such image falls to
    either side like a coin.

    Args:
        only_first: images that only the first has right.
        only_second: images that only the second has right.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    ratio: float = 2 * tail / 2**n  # of whole numbers, which have no largest
    return min(1.0, ratio)
