"""One evaluation from folders to numbers; ``report`` turns what is found here into files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from objrec.config.errors import UserError
from objrec.evaluation import label_errors, provenance, unknown
from objrec.evaluation.compare import compare, prediction_names
from objrec.evaluation.metrics import (
    Predictions,
    confusion_matrix,
    per_class,
    predictions_of,
    reliability_rows,
    summarize,
)
from objrec.evaluation.perturb import PERTURBATIONS, STRENGTHS, perturb
from objrec.images.image_folder import list_images
from objrec.images.repeats import near_duplicates
from objrec.inference.run_folder import ModelOutputs, Pixels, read_images, run_model
from objrec.inference.scores import known_score
from objrec.models.card import UNKNOWN_SCORES, ModelCard

NUM_OUTLIERS: Final = 60  # few enough not to be felt beside the test images
OUTLIER_SEED: Final = 1  # others than those on which training chose the score


_Columns = dict[str, list[Any]]


class Model(Protocol):
    """A model that can be evaluated, such as ``objrec.inference.predictor.Predictor``."""

    @property
    def card(self) -> ModelCard: ...

    def logits(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Map uint8 (N, size, size, 3) to float32 (N, classes)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How to evaluate. ``slices`` and ``robustness`` are extra work, done on request."""

    batch_size: int
    max_pixels: int
    near_duplicate_bits: int | None
    slices: bool = False
    robustness: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        predictions: of the model, and ``other`` of the one that it is compared with, if any.
        metrics: the content of ``metrics.json``.
        columns: further columns of ``predictions.csv``, each with a value per image.
        unknown_scores: rows of ``unknown.csv``: kind, image, score.
        manifest: the manifest row of each image, empty where none is known.
        suspects: images with a doubtful label, see ``label_errors.suspects``.
    """

    card: ModelCard
    predictions: Predictions
    metrics: dict[str, Any]
    columns: Mapping[str, Sequence[Any]]
    unknown_scores: list[dict[str, Any]]
    manifest: Sequence[Mapping[str, Any]]
    suspects: list[dict[str, Any]]
    other: Predictions | None


def conduct(
    model: Model,
    test_dir: Path,
    settings: EvaluationSettings,
    *,
    train_dir: Path | None = None,
    raw_data_dir: Path | None = None,
    unknown_dir: Path | None = None,
    other: Model | None = None,
) -> Evaluation:
    """Evaluate ``model`` on ``test_dir``.

    Args:
        train_dir: looked through for near-duplicates of test images.
        raw_data_dir: its manifest tells sources and licences.
        unknown_dir: images of none of the classes, in folders or not.
        other: a second model for a paired comparison.

    Raises:
        UserError: an empty folder, unknown classes, a second model that does not know the classes.
    """
    card = model.card
    outcome = run_model(test_dir, card, model.logits, batch_size=settings.batch_size, max_pixels=settings.max_pixels)
    p = predictions_of(outcome, card.temperature)
    manifest_rows = provenance.read_manifest(raw_data_dir) if raw_data_dir is not None else []
    manifest = provenance.rows_of(outcome, manifest_rows)
    metrics: dict[str, Any] = {**_numbers(p, card), "data": provenance.facts(manifest_rows)}
    columns: _Columns = {}
    metrics["unknown"], scores = _unknowns(model, outcome, unknown_dir, settings, columns)
    metrics["label_suspects"], suspects = _suspects(p, columns)
    metrics["near_duplicates"] = _duplicates(outcome, train_dir, settings)
    if settings.slices:
        slices = provenance.slice_columns(outcome, manifest)
        columns |= {f"slice_{name}": values for name, values in slices.items()}
        metrics["slices"] = provenance.slice_rows(p, slices)
    if settings.robustness:
        metrics["robustness"] = _robustness(model, test_dir, settings, p, columns)
    theirs = None
    if other is not None:
        theirs = _other(other, p, test_dir, settings)
        metrics["compare"] = {"other_model_sha256": other.card.sha256, **compare(p, theirs)}
        columns["other_prediction"] = prediction_names(theirs)
    return Evaluation(
        card=card,
        predictions=p,
        metrics=metrics,
        columns=columns,
        unknown_scores=scores,
        manifest=manifest,
        suspects=suspects,
        other=theirs,
    )


def _numbers(p: Predictions, card: ModelCard) -> dict[str, Any]:
    outcome = p.outcome
    return {
        **summarize(p),
        "test_data_fingerprint": outcome.fingerprint,
        "model_sha256": card.sha256,
        "unreadable": outcome.reasons,
        "no_images_by_name": outcome.others,
        "reliability": reliability_rows(p),
        "confusion_matrix": {"classes": outcome.classes, "counts": confusion_matrix(p).tolist()},
        "per_class": per_class(p),
    }


def _suspects(p: Predictions, columns: _Columns) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = label_errors.suspects(p)
    columns["suggested_label"] = [""] * len(p.outcome.paths)
    for suspect in found:
        columns["suggested_label"][suspect["index"]] = suspect["suggested"]
    rows = [{k: v for k, v in suspect.items() if k != "index"} for suspect in found]
    return {"method": label_errors.METHOD, "images": rows}, found


def _duplicates(outcome: ModelOutputs, train_dir: Path | None, settings: EvaluationSettings) -> dict[str, Any]:
    if train_dir is None:
        return {"checked": False, "pairs": []}
    paths = [outcome.folder / path for path in outcome.paths]
    pairs = near_duplicates(paths, train_dir, max_pixels=settings.max_pixels, distance=settings.near_duplicate_bits)
    return {"checked": True, "pairs": [{**pair, "test": outcome.paths[pair["test"]]} for pair in pairs]}


def _unknowns(
    model: Model, outcome: ModelOutputs, unknown_dir: Path | None, settings: EvaluationSettings, columns: _Columns
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score test images, drawn noise and ``unknown_dir``, and measure how well the scores part them."""
    card = model.card
    rule = card.unknown
    method = rule["score"] if rule else UNKNOWN_SCORES[0]
    known = known_score(outcome.logits, method, card.temperature)
    columns["unknown_score"] = [float(s) if r else "" for s, r in zip(known, outcome.readable, strict=True)]
    drawn = unknown.outlier_pixels(card.input_size, NUM_OUTLIERS, seed=OUTLIER_SEED)
    outliers = {"noise": ([str(i) for i in range(len(drawn))], model.logits(drawn))}
    if unknown_dir is not None:
        outliers["outside"] = _outside(model, unknown_dir, settings)
    found: dict[str, Any] = {"score": method, "threshold": rule["threshold"] if rule else None, "against": {}}
    if rule:
        found["known_rejected"] = _share(known[outcome.readable] < rule["threshold"])
    rows = []
    for kind, (names, logits) in outliers.items():
        scores = known_score(logits, method, card.temperature)
        found["against"][kind] = {
            "num_images": len(names),
            "auroc": unknown.auroc(known[outcome.readable], scores),
            **({"rejected": _share(scores < rule["threshold"])} if rule else {}),
        }
        rows += [{"kind": kind, "image": n, "score": float(s)} for n, s in zip(names, scores, strict=True)]
    if not outcome.readable.any():
        found["against"] = {}
    return found, rows


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _outside(model: Model, folder: Path, settings: EvaluationSettings) -> tuple[list[str], npt.NDArray[np.float32]]:
    listing = list_images(folder)
    files = [path for path, _ in listing.files]
    names: list[str] = []
    logits = []
    batches = read_images(files, model.card, batch_size=settings.batch_size, max_pixels=settings.max_pixels)
    for start, batch in zip(range(0, len(files), settings.batch_size), batches, strict=True):
        paths = files[start : start + settings.batch_size]
        good = [(path, read.pixels) for path, read in zip(paths, batch, strict=True) if read.pixels is not None]
        if good:
            names += [path.relative_to(folder).as_posix() for path, _ in good]
            logits.append(model.logits(np.stack([pixels for _, pixels in good])))
    if not names:
        raise UserError(f"evaluate.unknown_dir={folder}: has no image that can be read")
    return names, np.concatenate(logits)


def _robustness(
    model: Model, test_dir: Path, settings: EvaluationSettings, p: Predictions, columns: _Columns
) -> list[dict[str, Any]]:
    rows = []
    for kind in PERTURBATIONS:
        for strength in STRENGTHS:

            def alter(pixels: Pixels, sha256: str, kind: str = kind, strength: int = strength) -> Pixels:
                return perturb(pixels, kind, strength, seed=int(sha256[:12], 16))

            outcome = run_model(
                test_dir,
                model.card,
                model.logits,
                batch_size=settings.batch_size,
                max_pixels=settings.max_pixels,
                alter=alter,
            )
            harder = predictions_of(outcome, p.temperature)
            columns[f"{kind}_{strength}_prediction"] = prediction_names(harder)
            rows.append({"kind": kind, "strength": strength, "accuracy": float(harder.correct.mean())})
    return rows


def _other(other: Model, p: Predictions, test_dir: Path, settings: EvaluationSettings) -> Predictions:
    missing = {p.outcome.classes[i] for i in p.outcome.targets} - set(other.card.class_names)
    if missing:
        raise UserError(
            f"evaluate.compare: the other model does not know {', '.join(sorted(missing))}:"
            " two models can be compared on classes that both know"
        )
    outcome = run_model(
        test_dir, other.card, other.logits, batch_size=settings.batch_size, max_pixels=settings.max_pixels
    )
    return predictions_of(outcome, other.card.temperature)
