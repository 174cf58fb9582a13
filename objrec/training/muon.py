"""Muon for convolution kernels, SGD for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; chosen by Jordan for the steepest start


class Muon(Optimizer):
    """Step kernels along the nearest semi-orthogonal matrix of their momentum; biases, norms and the head by SGD.

    A kernel is one matrix, a row for each output channel. Its norm is held at the square root of the number of rows, so
    that a rate means the same turn throughout the training. torch's own Muon takes matrices only.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the division of the
    parameters and the norm as in airbench94_muon (Jordan, 2024).

    Args:
        params: parameters, or groups of them; a group's ``lr`` counts for its kernels.
        lr: of kernels.
        momentum: of kernels (Nesterov).
        head_lr, other_lr: rates of matrices and of vectors, as multiples of ``lr``.
        sgd_momentum: of those (Nesterov).
        weight_decay: of those; a kernel's norm is fixed anyway.
        steps: of the iteration towards the semi-orthogonal matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float,
        head_lr: float,
        other_lr: float,
        sgd_momentum: float,
        weight_decay: float,
        steps: int,
    ) -> None:
        given = list(params)
        groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        divided: list[dict[str, Any]] = []
        for group in groups:
            rate: float = group.get("lr", lr)
            decay: float = group.get("weight_decay", weight_decay)
            kernels: list[Tensor] = []
            matrices: list[Tensor] = []
            vectors: list[Tensor] = []
            for p in group["params"]:
                (kernels if p.ndim == 4 else matrices if p.ndim == 2 else vectors).append(p)
            divided += [
                {"params": kernels, "lr": rate, "momentum": momentum, "orthogonal": True, "weight_decay": 0.0},
                {"params": matrices, "lr": rate * head_lr, "weight_decay": decay},
                {"params": vectors, "lr": rate * other_lr, "weight_decay": decay},
            ]
        self.steps = steps
        defaults = {"lr": lr, "momentum": sgd_momentum, "orthogonal": False, "weight_decay": weight_decay}
        super().__init__([g for g in divided if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        grad = p.grad
        assert grad is not None
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        velocity: Tensor = state["momentum"].mul_(group["momentum"]).add_(grad)
        direction = grad.add(velocity, alpha=group["momentum"])
        if group["orthogonal"]:
            p.mul_(len(p) ** 0.5 / p.norm())
            direction = orthogonalize(direction.flatten(1), self.steps).view_as(p).to(p.dtype)
        p.sub_(direction, alpha=group["lr"])


def orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """Return bfloat16 (M, N) with the singular vectors of ``matrix`` and singular values between about 0.7 and 1.2.

    Source: a Newton-Schulz iteration with the coefficients of Jordan et al., 2024.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
