"""``python -m objrec.models.convert CHECKPOINT BACKBONE OUT.safetensors``: weights under timm's names.

For a checkpoint of the same architecture that names its tensors otherwise: where all agree in order and shape, they are
the same tensors. The result goes to ``backbone.weights=OUT.safetensors``. Nothing is unpickled.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objrec.config.cli import guard, wants_help
from objrec.config.errors import UserError


def main() -> None:
    arguments = sys.argv[1:]
    if wants_help(arguments) or len(arguments) != 3:
        print(__doc__)
        sys.exit(not wants_help(arguments))
    sys.exit(guard(lambda: convert(Path(arguments[0]), arguments[1], Path(arguments[2]))))


def convert(checkpoint: Path, backbone: str, out: Path) -> None:
    """Write ``out``. Raises UserError where the checkpoint cannot be read or its tensors do not match."""
    from safetensors.torch import save_file

    from objrec.models.backbones import build_backbone, read_weights
    from objrec.system import outputs
    from objrec.system.files import permit

    if problems := outputs.check({"OUT": (out, "file")}, {"CHECKPOINT": checkpoint}):
        raise UserError(problems)
    source = read_weights(checkpoint)
    classes = next(iter(reversed([t for t in source.values() if t.ndim > 0]))).shape[0]  # the bias of the head
    model = build_backbone(name=backbone, num_classes=classes, image_size=224)
    tensors = renamed(source, model.state_dict())
    with outputs.placed("OUT", out, "file") as place:
        save_file(tensors, place)
        permit(place)
    print(f"{out}: {len(source)} tensors of {backbone}")


def renamed(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source's tensors under the target's names, paired in order. Raises UserError where a shape differs."""
    if len(source) != len(target):
        raise UserError(f"the checkpoint has {len(source)} tensors, the backbone {len(target)}")
    for (a, x), (b, y) in zip(source.items(), target.items(), strict=True):
        if x.shape != y.shape:
            raise UserError(f"{a} is of shape {tuple(x.shape)}, {b} of {tuple(y.shape)}: another architecture or order")
    return {b: x.contiguous() for b, x in zip(target, source.values(), strict=True)}


if __name__ == "__main__":
    main()
