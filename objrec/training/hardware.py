"""What this machine has, and what a training should make of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from objrec.config.errors import UserError
from objrec.config.schema import Compute


@dataclass(frozen=True)
class Hardware:
    """What the Trainer is given, and what to print: a line that says why, and a warning where there is one."""

    accelerator: str
    precision: str
    reason: str

    @property
    def device(self) -> torch.device:
        """The device of a pass outside the Trainer."""
        return torch.device({"gpu": "cuda", "mps": "mps"}.get(self.accelerator, "cpu"))

    def autocast(self) -> torch.autocast:
        """The precision of a pass outside the Trainer."""
        dtype = torch.float16 if self.precision == "16-mixed" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "32")


def choose_hardware(compute: Compute, model: nn.Module | None = None) -> Hardware:
    """Resolve ``auto``: the accelerator that is there, bf16 where it is in silicon and pays.

    Args:
        model: what is to be trained; on a CPU a step of depthwise convolutions in bf16 was measured to take twice as
            long as one in fp32 (EfficientNet-Lite0 at 96 px, torch 2.15).

    Raises:
        UserError: an accelerator is asked for that this machine has not, or batch norm in common on a CPU.
    """
    accelerator = compute.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "compute.accelerator=gpu: this machine has no GPU that torch can use; compute=cpu runs anywhere"
        )
    if compute.sync_batchnorm and accelerator != "gpu":
        raise UserError("compute.sync_batchnorm=true: torch has common batch statistics on GPUs only")
    bf16 = _bf16(accelerator)
    precision = "bf16-mixed" if bf16 else "32"
    chosen = f"bf16 in {bf16}" if bf16 else "no bf16 in hardware"
    if compute.precision != "auto":
        precision, chosen = compute.precision, "asked for"
    elif bf16 and accelerator == "cpu" and model is not None and _has_depthwise(model):
        precision, chosen = "32", "depthwise convolutions are slow in bf16 on a CPU"
    threads = f", {torch.get_num_threads()} threads" if accelerator == "cpu" else ""
    compiled = ", torch.compile" if compute.compile else ""
    reason = f"compute: {accelerator}{threads}, precision {precision} ({chosen}), channels_last{compiled}"
    if accelerator == "cpu" and precision == "bf16-mixed" and not bf16:
        reason += (
            "\nwarning: this processor has no bf16 and emulates it, which is many times slower than fp32: "
            "compute.precision=32 or auto is faster here"
        )
    return Hardware(accelerator, precision, reason)


def _bf16(accelerator: str) -> str | None:
    """Name the unit that computes in bf16. oneDNN takes bf16 on any AVX512 processor, but emulates it slowly."""
    if accelerator == "gpu":
        return "the GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if accelerator != "cpu":
        return None
    units = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX512-BF16": torch.cpu._is_avx512_bf16_supported()}
    return " and ".join(name for name, there in units.items() if there) or None


def _has_depthwise(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(s in str(error) for s in ("not enough memory", "Cannot allocate memory", "out of memory"))
    )


@contextmanager
def memory_advice(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into advice. Raises UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if batch_size == 1:
            cure = "take a smaller backbone or preprocess.image_size"
        else:
            cure = (
                f"try train.batch_size={batch_size // 2} (with train.accumulate=2 the steps stay as they are), "
                "or train.batch_size=auto"
            )
        raise UserError(f"out of memory with train.batch_size={batch_size}: {cure}") from error
