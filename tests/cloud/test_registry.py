"""What the gate learns of a model in the workspace, without a workspace."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.serving import make_images, make_model

from objrec.cloud.deployment import _comparison
from objrec.cloud.registry import CONTENT, AzureRegistry, content_of
from objrec.deployment.gate import Unusable, decide
from objrec.model_registry.records import Record
from objrec.models.card import ModelCard

pytest.importorskip("azure.ai.ml")


class Models:
    """The part of the client that keeps models."""

    def __init__(self, stored: Path, tags: dict[str, str]) -> None:
        self.stored, self.tags, self.downloads = stored, tags, 0

    def list(self, name: str) -> list[Any]:
        return [SimpleNamespace(version="1", tags=self.tags, path="x")]

    def download(self, name: str, version: str, download_path: str) -> None:
        self.downloads += 1
        shutil.copytree(self.stored, Path(download_path) / "model")


def registry_of(model: Path, *, content: str | None = None) -> tuple[AzureRegistry, Models]:
    tags = {"sha256": ModelCard.load(model).sha256}
    models = Models(model, tags if content is None else {**tags, CONTENT: content})
    return AzureRegistry(SimpleNamespace(models=models), "objrec", "e"), models


def test_a_model_that_is_gone_or_not_what_was_registered_is_unusable(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    sha256 = ModelCard.load(model).sha256
    registry, _ = registry_of(model, content=content_of(model))
    assert (registry.download(sha256, tmp_path / "one") / "model.onnx").is_file()
    with pytest.raises(Unusable, match="no version"):
        registry.download("f" * 64, tmp_path / "two")
    (model / "model.json").write_text((model / "model.json").read_text().replace("green", "brown"))
    with pytest.raises(Unusable, match="damaged"):
        registry.download(sha256, tmp_path / "three")
    older, _ = registry_of(model)  # registered without such a tag
    assert older.download(sha256, tmp_path / "four").is_dir()


def test_the_comparison_downloads_only_what_it_must_measure(tmp_path: Path) -> None:
    test_dir = make_images(tmp_path / "test", per_class=2)
    served, candidate = make_model(tmp_path / "m0"), make_model(tmp_path / "m1", seed=1)
    registry, models = registry_of(served)

    def record(folder: Path, accuracy: float, test_data: str) -> Record:
        card = ModelCard.load(folder)
        return Record(
            sha256=card.sha256,
            training_data_fingerprint="d",
            accuracy=accuracy,
            test_data_fingerprint=test_data,
            num_images=6,
        )

    current = SimpleNamespace(production=lambda: record(served, 0.9, "t"))
    inputs = {"model_dir": candidate, "test_dir": test_dir}
    new = record(candidate, 0.95, "t")
    compare = _comparison(registry, new, inputs, 10**6, tmp_path / "scratch")
    assert decide(new, current, compare=compare).rule == "higher" and models.downloads == 0
    new = record(candidate, 0.95, "other")
    compare = _comparison(registry, new, inputs, 10**6, tmp_path / "scratch")
    assert decide(new, current, compare=compare).rule == "not_higher" and models.downloads == 1
