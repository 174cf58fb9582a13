"""Learning-rate schedules that torch has not."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class CosineWarmup(LambdaLR):
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, "SGDR", 2017, without restarts).

    Args:
        total_steps: of the whole run.
        warmup: share of them, in [0, 1).
    """

    def __init__(self, optimizer: Optimizer, *, total_steps: int, warmup: float) -> None:
        rise = max(1, round(total_steps * warmup))

        def factor(step: int) -> float:
            if step < rise and warmup > 0:
                return (step + 1) / rise
            done = (step - rise) / max(1, total_steps - rise) if warmup > 0 else step / max(1, total_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        super().__init__(optimizer, factor)


class LinearDecay(LambdaLR):
    """Linear warm-up, then linearly to zero at the last step.

    Args:
        total_steps: of the whole run.
        warmup: share of them, in [0, 1).
    """

    def __init__(self, optimizer: Optimizer, *, total_steps: int, warmup: float) -> None:
        rise = round(total_steps * warmup)

        def factor(step: int) -> float:
            return (step + 1) / rise if step < rise else max(0, total_steps - step) / max(1, total_steps - rise)

        super().__init__(optimizer, factor)


def momentum_cycle(optimizer: Optimizer, swing: float) -> dict[str, Any]:
    """Return options of torch's ``OneCycleLR`` that cycle around the momentum that the optimizer has.

    torch's own go from 0.95 to 0.85 and back whatever the optimizer was given: a swing of 0.05 around 0.9.

    Args:
        swing: to each side of the momentum, or of the first of ``betas``; less where that would leave [0, 1).
    """
    found = [group["betas"][0] if "betas" in group else group.get("momentum") for group in optimizer.param_groups]
    momenta = [float(m) for m in found if m is not None]
    if not swing or len(momenta) < len(found):
        return {"cycle_momentum": False}
    swings = [min(swing, m, (1 - m) / 2) for m in momenta]
    return {
        "base_momentum": [round(m - s, 9) for m, s in zip(momenta, swings, strict=True)],
        "max_momentum": [round(m + s, 9) for m, s in zip(momenta, swings, strict=True)],
    }
