"""Two models on the same test images: those that neither of them has trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from objrec.config.errors import UserError
from objrec.deployment.gate import Standing, p_better
from objrec.images.raw import SHORT, read_hashes, read_raw_images
from objrec.model_registry.records import Record
from objrec.models.card import TRAINED_ON, ModelCard
from objrec.system.files import file_sha256

Files = Sequence[tuple[str, Path]]  # (class, file) of a test set


class MeasurementLog(Protocol):
    """Measurements of earlier comparisons."""

    def recall(self, sha256: str, test_data: str) -> Record | None:
        """The record of a model that was measured on these test images, or None."""

    def keep(self, record: Record) -> None:
        """Remember a measurement."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The candidate beside the model in production; called by the gate, it measures only what is not known.

    Attributes:
        place_of: returns the folder of the model in production. Raises UserError.
        right: returns for each of ``files`` whether the model in a folder is right. Raises UserError.
        memory: None where none is kept.
    """

    candidate: Record
    candidate_dir: Path
    test_dir: Path
    files: Callable[[], Files]
    place_of: Callable[[Record], Path]
    right: Callable[[Path], list[bool]]
    memory: MeasurementLog | None = None

    def __call__(self, current: Record) -> Standing:
        """Return how both do. Raises UserError when the model in production cannot be measured."""
        kept = self._untouched(current)
        if kept is None:
            after, before, count = self.candidate.accuracy, self._before(current), self.candidate.num_images or 0
        else:
            after, before, count = self._measure(self.candidate, kept), self._measure(current, kept), sum(kept)

        def p_value() -> float:
            return p_better(self._right(self.candidate, kept), self._right(current, kept))

        return Standing(after, before, count, left_out=0 if kept is None else len(kept) - count, p_value=p_value)

    def _untouched(self, current: Record) -> list[bool] | None:
        """Return for each test file whether neither model has trained on its raw image; None where that is all."""
        trained = self._trained_on(self.candidate)
        if current.split_fingerprint != self.candidate.split_fingerprint:  # else it was the same images
            trained |= self._trained_on(current)
        if not trained:
            return None
        kept = [digest not in trained for digest in self._hashes]
        return None if all(kept) else kept

    def _trained_on(self, record: Record) -> frozenset[str]:
        if record.split_fingerprint is None:  # of an older version, which kept no list
            return frozenset()
        folder = self._folder(record)
        return read_hashes(folder / TRAINED_ON) if TRAINED_ON in ModelCard.load(folder).files else frozenset()

    @cached_property
    def _files(self) -> Files:
        return self.files()

    @cached_property
    def _hashes(self) -> list[str]:
        """Short hashes of the raw images behind the test files; of the files where nothing is known of those."""
        raw = read_raw_images(self.test_dir, self.candidate.test_data_fingerprint or "")
        known = {} if raw is None else raw.images
        names = [f"{label}/{path.name}" for label, path in self._files]
        return [
            known.get(name) or file_sha256(path)[:SHORT] for name, (_, path) in zip(names, self._files, strict=True)
        ]

    def _before(self, current: Record) -> float | None:
        if current.accuracy is not None and current.test_data_fingerprint == self.candidate.test_data_fingerprint:
            return current.accuracy
        return self._measure(current, None)

    def _measure(self, record: Record, kept: Sequence[bool] | None) -> float | None:
        """Return the accuracy on the ``kept`` test files, None on none."""
        test_data = self.candidate.test_data_fingerprint or ""
        if kept is not None:
            if not any(kept):
                return None
            test_data += f"-{hashlib.sha256(bytes(kept)).hexdigest()[:SHORT]}"
        known = None if self.memory is None else self.memory.recall(record.sha256, test_data)
        if known is not None and known.accuracy is not None:
            return known.accuracy
        right = self._right(record, kept)
        accuracy = sum(right) / len(right)
        if self.memory is not None:
            measured = {"accuracy": accuracy, "num_images": len(right), "test_data_fingerprint": test_data}
            self.memory.keep(record.model_copy(update=measured))
        return accuracy

    def _right(self, record: Record, kept: Sequence[bool] | None) -> list[bool]:
        found = self._answers.get(record.sha256)
        if found is None:
            try:
                found = self._answers[record.sha256] = self.right(self._folder(record))
            except UserError as error:
                if record.sha256 == self.candidate.sha256:
                    raise
                raise UserError(
                    f"the model in production cannot be measured on the new test set: {error}; promote another one"
                ) from None
        return found if kept is None else [is_right for is_right, keep in zip(found, kept, strict=True) if keep]

    @cached_property
    def _answers(self) -> dict[str, list[bool]]:
        return {}

    def _folder(self, record: Record) -> Path:
        return self.candidate_dir if record.sha256 == self.candidate.sha256 else self.place_of(record)
