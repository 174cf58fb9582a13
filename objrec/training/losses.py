"""Losses over hard or soft targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss; label smoothing, soft targets and class weights go together.

    Sources: Szegedy et al., "Rethinking the Inception Architecture", 2016 (label smoothing); Lin et al., "Focal Loss
    for Dense Object Detection", 2017.

    Args:
        label_smoothing: in [0, 1).
        gamma: of the focal loss; 0 is cross-entropy.
        class_weights: one for each class, or None. An image weighs what its target classes weigh in the mean of its
            shares of them, and the loss is the weighted mean over the batch.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        kind: Literal["cross_entropy", "focal"] = "cross_entropy",
        label_smoothing: float = 0.0,
        gamma: float = 2.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.label_smoothing, self.gamma = kind, label_smoothing, gamma
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Map float (N, C) and int64 (N,) or float (N, C) to a scalar."""
        if self.kind == "cross_entropy" and self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if self.kind == "cross_entropy":
            each = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        else:
            each = self._focal(logits, targets)
        if self.class_weights is None:
            return each.mean()
        weights = self.class_weights[targets] if targets.ndim == 1 else targets @ self.class_weights
        return (weights * each).sum() / weights.sum()

    def _focal(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        shares = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        log_p = F.log_softmax(logits.float(), dim=1)
        return -(shares * (1 - log_p.exp()) ** self.gamma * log_p).sum(dim=1)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return weights in inverse proportion to the class counts, 1 for a class of average size; 0 for an empty one."""
    n = torch.tensor(counts, dtype=torch.float32)
    return torch.where(n > 0, n.sum() / (len(n) * n.clamp(min=1)), 0.0)
