"""An exponential moving average of the weights: what is validated and exported in place of the last ones."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Average weights and batch statistics after every step (Polyak and Juditsky, 1992).

    The first steps count less, so that a short run is not an average of its random start: after n steps the
    decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage.

    Args:
        decay: share of the old average that a step keeps, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Any) -> None:
            keep = min(decay, (1 + int(count)) / (10 + int(count)))
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, 1 - keep)
            else:  # the number of batches that batch norm has seen
                torch._foreach_copy_(averaged, current)

        super().__init__(multi_avg_fn=average)
