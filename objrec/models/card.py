"""``model.json``: all that prediction needs to know of a model, readable without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from objrec.config.errors import UserError, did_you_mean
from objrec.images.preprocessing import FILTERS, Preprocessing
from objrec.system.files import file_sha256

FORMAT_VERSION = 1
TRAINED_ON: Final = "trained_on.txt.gz"  # short hashes of the raw images that were trained on
FILES: Final = ("model.safetensors", "model.onnx")
UNKNOWN_SCORES: Final = ("max_probability", "energy")  # in order of preference where they do equally well
CURE: Final = "copy the model folder again, or train again"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelCard(BaseModel):
    """The content of ``model.json``.

    Attributes:
        backbone: arguments of the backbone factory, ``name`` among them.
        class_names: in the order of the model's outputs.
        input_size: pixels of the square input; ``mean``, ``std``, ``interpolation`` and ``crop_pct`` as in
            ``Preprocessing``.
        training_data_fingerprint: of the raw images behind ``train_dir``, as in ``Record``; so are the next three.
        num_training_images, sources: how many images were trained on, and where ingest took them from, if known.
        metrics: of the exported (best) checkpoint on validation data, and its epoch.
        unknown: the rule that rejects images of none of the classes; see ``objrec.evaluation.unknown``.
        temperature: probabilities are softmax(logits / temperature).
        files: sha256 of ``model.safetensors``, ``model.onnx`` and ``trained_on.txt.gz``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION, strict=True)
    backbone: dict[str, Any]
    class_names: list[str] = Field(min_length=2)
    input_size: int = Field(ge=1, le=4096)
    mean: list[Finite] = Field(min_length=3, max_length=3)
    std: list[Positive] = Field(min_length=3, max_length=3)
    interpolation: str
    crop_pct: float = Field(default=1.0, gt=0, le=1)  # models from before this field took the whole square
    training_data_fingerprint: str
    split_fingerprint: str | None = None
    crops_fingerprint: str | None = None
    preprocessing_digest: str | None = None
    num_training_images: int | None = None
    sources: list[str] = []
    metrics: dict[str, float]
    temperature: Positive = 1.0
    unknown: dict[str, Any] | None = None
    git_commit: str | None
    versions: dict[str, str]
    files: dict[str, Sha256]

    @field_validator("class_names")
    @classmethod
    def _check_class_names(cls, names: list[str]) -> list[str]:
        if not all(names):
            raise ValueError("a class has an empty name")
        if len(set(names)) < len(names):
            raise ValueError(f"two classes are called '{next(n for n in names if names.count(n) > 1)}'")
        return names

    @field_validator("interpolation")
    @classmethod
    def _check_interpolation(cls, name: str) -> str:
        if name not in FILTERS:
            raise ValueError(f"there is no '{name}'.{did_you_mean(name, FILTERS)}")
        return name

    @field_validator("unknown")
    @classmethod
    def _check_unknown(cls, rule: dict[str, Any] | None) -> dict[str, Any] | None:
        if rule is None:
            return None
        threshold: Any = rule.get("threshold")
        if rule.get("score") not in UNKNOWN_SCORES:
            raise ValueError(f"its score is none of {', '.join(UNKNOWN_SCORES)}")
        if type(threshold) not in (int, float) or not abs(threshold) < sys.float_info.max:
            raise ValueError("its threshold is not a finite number")
        return rule

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a file name, or is outside the model folder")
        if missing := [name for name in FILES if name not in files]:
            raise ValueError(f"{' and '.join(missing)} not listed")
        return files

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            size=self.input_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )

    @property
    def sha256(self) -> str:
        """The identity of the model: the hash of its weights file."""
        return self.files["model.safetensors"]

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read ``model_dir/model.json``. Raises UserError when it is missing, damaged or of a newer format."""
        path = model_dir / "model.json"
        data = _read(path)
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer objrec (format {version}): upgrade objrec")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            what = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{path} is damaged: {where}: {what}; {CURE}") from None

    def save(self, model_dir: Path) -> None:
        (model_dir / "model.json").write_text(json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n")

    def verify(self, model_dir: Path) -> None:
        """Raise UserError when a file differs from the hash recorded here."""
        for name, expected in self.files.items():
            path = model_dir / name
            try:
                if not path.exists():
                    raise FileNotFoundError
                found = file_sha256(path) if path.is_file() else ""  # opening a pipe would block
            except FileNotFoundError:
                raise UserError(f"{path} is missing: the model folder is incomplete") from None
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            if not found:
                raise UserError(f"{path} is not a file: {CURE}")
            if found != expected:
                raise UserError(f"{path} is damaged: its sha256 is not the one in model.json")


def _read(path: Path) -> Any:
    try:
        is_other = path.exists() and not path.is_file()  # opening a pipe would block
        data = None if is_other else json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not a model folder: it has no model.json") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; {CURE}") from None
    if is_other:
        raise UserError(f"{path} is not a file: {CURE}")
    return data
