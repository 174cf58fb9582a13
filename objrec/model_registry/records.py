"""What the registry and the gate know of a model: small, plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from objrec.config.errors import UserError
from objrec.models.card import ModelCard


class Record(BaseModel):
    """A model and how well it did.

    Attributes:
        sha256: of ``model.safetensors``; the identity of the model, and what the endpoint calls ``model_version``.
        accuracy: share of right answers on the test set named by ``test_data_fingerprint``; None when never measured.
        num_images: size of that test set.
        training_data_fingerprint: of the kept raw images, before they were split; of ``train_dir`` where nothing is
            known of raw images, and in records of older versions.
        split_fingerprint: of the raw images that ``train_dir`` holds; None in records of older versions.
        crops_fingerprint: of the content of ``train_dir``.
        preprocessing: a digest of the settings that made it from the raw images.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    sha256: str
    training_data_fingerprint: str
    accuracy: float | None = None
    test_data_fingerprint: str | None = None
    num_images: int | None = None
    split_fingerprint: str | None = None
    crops_fingerprint: str | None = None
    preprocessing: str | None = None

    @classmethod
    def of(cls, card: ModelCard, accuracy: Accuracy) -> Self:
        """Return the record of a model that was evaluated."""
        return cls(
            sha256=card.sha256,
            training_data_fingerprint=card.training_data_fingerprint,
            accuracy=accuracy.accuracy,
            test_data_fingerprint=accuracy.test_data_fingerprint,
            num_images=accuracy.num_images,
            split_fingerprint=card.split_fingerprint,
            crops_fingerprint=card.crops_fingerprint,
            preprocessing=card.preprocessing_digest,
        )

    def has_the_data_of(self, other: Record) -> bool:
        """Whether both were trained on the same data, however it was split, cropped and resized."""
        if other.training_data_fingerprint == self.training_data_fingerprint:
            return True
        # older versions knew train_dir only, and called that the training data
        return any(
            old.split_fingerprint is None and old.training_data_fingerprint == new.crops_fingerprint
            for old, new in ((self, other), (other, self))
        )


class Accuracy(BaseModel):
    """The content of ``accuracy_file``, as far as deployment reads it."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    accuracy: float
    num_images: int
    test_data_fingerprint: str
    model_sha256: str
    confidence_interval: list[float] | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an accuracy file. Raises UserError when it is missing, damaged, or holds no accuracy in [0, 1]."""
        again = "run the evaluate step again"
        try:
            data: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such accuracy file: {again}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): {again}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path} is damaged (not a JSON object): {again}")
        value = data.get("accuracy")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 or math.isnan(value):
            raise UserError(f"{path}: accuracy is {value!r}, not a number from 0 to 1: nothing was deployed; {again}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} is damaged ({where}: {first['msg']}): {again}") from None
