"""Smoke images: some of the test set with the answers that a model gave before it was deployed.

They are stored in ``registry_dir/smoke/<sha256>.json``, and every process that loads the model to serve it, on
whatever runtime, must reproduce the answers first.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objrec.config.errors import UserError
from objrec.images.decode import ImageError
from objrec.images.image_folder import list_classes

if TYPE_CHECKING:
    from objrec.inference.predictor import Predictor

IMAGES = 16  # enough to meet every class once where there are few, and small enough to answer in a second
TOLERANCE = {
    "fp32": 0.01,
    "bf16": 0.1,
    "int8": 0.25,
}  # of a probability; low precision is also measured on the test set


@dataclass(frozen=True)
class Smoke:
    """Encoded images and, for each, the probabilities (classes,) that the original gave."""

    images: Sequence[bytes]
    probabilities: Sequence[Sequence[float]]

    @classmethod
    def load(cls, path: Path) -> Smoke | None:
        """Read the file, or return None where there is none. Raises UserError for a damaged one."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = data.get("images", data.get("pictures"))  # as versions up to 0.1 called them
            return cls([base64.b64decode(r["data"]) for r in rows], [r["probabilities"] for r in rows])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): deploy the model again") from None

    def dumps(self) -> str:
        rows = [
            {"data": base64.b64encode(data).decode(), "probabilities": list(probabilities)}
            for data, probabilities in zip(self.images, self.probabilities, strict=True)
        ]
        return json.dumps({"images": rows}) + "\n"

    def difference(self, predictor: Predictor) -> float:
        """Return the largest difference of a probability between ``predictor`` and the recorded answers.

        Raises:
            UserError: a recorded image is none.
        """
        worst = 0.0
        for data, expected in zip(self.images, self.probabilities, strict=True):
            try:
                pixels = predictor.pixels(data)
            except ImageError as error:
                version = predictor.card.sha256[:12]
                raise UserError(f"a smoke image of model {version} is damaged ({error}): deploy it again") from None
            given = predictor.probabilities(pixels[None])[0].tolist()
            if len(given) != len(expected):
                return 1.0
            worst = max(worst, *(abs(a - b) for a, b in zip(given, expected, strict=True)))
            if any(p != p for p in given):
                return 1.0
        return worst


def smoke_file(registry_dir: Path, sha256: str) -> Path:
    return registry_dir / "smoke" / f"{sha256}.json"


def images_in_turns(folder: Path) -> list[tuple[str, Path]]:
    """Return (class name, file) for each image of a test folder, the classes taking turns, the same each time.

    Any beginning of the list is thus a fair sample. Raises UserError when there is none.
    """
    split = list_classes(folder)
    files = [(split.classes[target], path) for path, target in split.files]
    groups = [list(group) for _, group in itertools.groupby(files, key=lambda item: item[0])]
    return [item for row in itertools.zip_longest(*groups) for item in row if item is not None]
