"""``model.json``: all that prediction needs to know of a model, readable without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from objrec.config.errors import UserError
from objrec.images.geometry import Preprocessing

FORMAT_VERSION = 1


class ModelCard(BaseModel):
    """The content of ``model.json``.

    Attributes:
        backbone: arguments of the backbone factory, ``name`` among them.
        class_names: in the order of the model's outputs.
        input_size: pixels of the square input; ``mean``, ``std`` and ``interpolation`` as in ``Preprocessing``.
        training_data_fingerprint: of the content of ``train_dir``.
        metrics: of the exported (best) checkpoint on validation data, and its epoch.
        unknown: the rule that tells pictures of none of the classes; see ``objrec.evaluation.unknown``.
        temperature: probabilities are softmax(logits / temperature).
        files: sha256 of ``model.safetensors`` and ``model.onnx``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format_version: int = FORMAT_VERSION
    backbone: dict[str, Any]
    class_names: list[str] = Field(min_length=2)
    input_size: int
    mean: list[float]
    std: list[float]
    interpolation: str
    training_data_fingerprint: str
    metrics: dict[str, float]
    temperature: float = 1.0
    unknown: dict[str, Any] | None = None
    git_commit: str | None
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=self.input_size, mean=self.mean, std=self.std, interpolation=self.interpolation)

    @property
    def sha256(self) -> str:
        """The identity of the model: the hash of its weights file."""
        return self.files["model.safetensors"]

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read ``model_dir/model.json``. Raises UserError when it is missing, damaged or of a newer format."""
        path = model_dir / "model.json"
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{model_dir} is not a model folder: it has no model.json") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if isinstance(data, dict) and data.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer objrec (format {data['format_version']}): upgrade objrec")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError(f"{path} is damaged: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None

    def save(self, model_dir: Path) -> None:
        (model_dir / "model.json").write_text(json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n")

    def verify(self, model_dir: Path) -> None:
        """Raise UserError when a file differs from the hash recorded here."""
        for name, expected in self.files.items():
            if not (model_dir / name).is_file():
                raise UserError(f"{model_dir / name} is missing: the model folder is incomplete")
            if file_sha256(model_dir / name) != expected:
                raise UserError(f"{model_dir / name} is damaged: its sha256 is not the one in model.json")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
