"""Train, evaluate and predict from Python, with the settings of the commands. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objrec.inference.given import ImageLike

__all__ = ["Trained", "evaluate", "predict", "train"]


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        model_dir: the model folder, for ``evaluate``, ``predict`` and ``Predictor.load``.
        metrics: of the best epoch, by name: ``val/acc``, ``val/loss``, ...
        class_names: in the order of the model's outputs.
    """

    model_dir: Path
    metrics: dict[str, float]
    class_names: list[str]


def train(*overrides: str) -> Trained:
    """Train as ``python -m objrec.train`` does; the data set is built first (cached) where none is given.

    Args:
        overrides: settings as on the command line: ``train("train.max_epochs=3", "backbone=resnet18")``.

    Raises:
        UserError: a bad setting, or data that cannot be used.
    """
    from objrec.config.command_line import refuse_sweep
    from objrec.config.load import load_config
    from objrec.runner.given import inputs_of
    from objrec.runner.runner import check_folders, forget_run, new_run_dir
    from objrec.runner.train import train as run
    from objrec.steps import load_steps
    from objrec.steps.base import leading_to

    refuse_sweep(overrides)
    config = load_config(overrides)
    check_folders(config, inputs_of(leading_to(load_steps(), "model_dir"), config))
    run_dir = new_run_dir(config, "train")
    try:
        card = run(config, overrides=list(overrides), run_dir=run_dir)
    except ValueError:  # of which UserError is one
        if config.run_dir is None and not any(run_dir.glob("model/*")):
            forget_run(run_dir)
        raise
    return Trained(run_dir / "model", dict(card.metrics), list(card.class_names))


def evaluate(*overrides: str) -> dict[str, Any]:
    """Measure a model as ``python -m objrec.evaluate`` does: ``evaluate("model_dir=MODEL", "test_dir=TEST")``.

    Returns:
        the content of ``metrics.json``, and the report's path as ``report``.

    Raises:
        UserError: a bad setting, or a model or images that cannot be used.
    """
    from objrec.evaluate import measure

    metrics, report = measure(list(overrides))
    return {**metrics, "report": report}


def predict(images: ImageLike | Iterable[ImageLike], *, model_dir: str | Path | None = None, top_k: int = 5) -> Any:
    """Label an image, or several: see ``objrec.inference.predictor.Predictor.predict``.

    Each call loads the model; to label again and again keep a ``Predictor``.

    Args:
        model_dir: a model folder; None: the model in production.

    Raises:
        ImageError: the one image is bad.
        UserError: there is no such model, or none in production.
    """
    from objrec.config.load import load_config
    from objrec.inference.predictor import Predictor
    from objrec.predict import production_dir

    config = load_config()
    folder = Path(model_dir) if model_dir is not None else production_dir(Path(config.registry_dir))
    return Predictor.load(folder, max_pixels=config.images.max_pixels).predict(images, top_k=top_k)
