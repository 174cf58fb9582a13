"""The evaluate step: a model folder and a test folder in, the accuracy and a report out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from objrec.config.schema import Config
from objrec.pipeline.step import Port, make_step

ACCURACY_KEYS = (
    "accuracy",
    "num_images",
    "num_unreadable",
    "confidence_interval",
    "test_data_fingerprint",
    "model_sha256",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "top_k",
    "log_loss",
    "ece",
)


@make_step(
    name="evaluate",
    inputs=(Port(name="model_dir"), Port(name="test_dir")),
    outputs=(Port(name="accuracy_file", kind="file"), Port(name="report_dir")),
    reads=("evaluate", "images.max_pixels", "compute.runtime"),
    libraries=("numpy", "onnxruntime", "pillow"),
    compute="gpu",
)
def STEP(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Measure a model on test pictures and write the accuracy and a report.

    Raises:
        UserError: for a damaged model folder, an empty test folder or classes that the model does not know.
    """
    from objrec.evaluation.files import prediction_rows, write_csv, write_json
    from objrec.evaluation.inference import run_model
    from objrec.evaluation.metrics import confusion_matrix, per_class, predictions_of, reliability_rows, summarize
    from objrec.evaluation.pictures import draw_confusion_matrix
    from objrec.evaluation.report import render
    from objrec.serving.predictor import Predictor

    predictor = Predictor.load(inputs["model_dir"])
    card = predictor.card
    outcome = run_model(
        inputs["test_dir"],
        card,
        predictor.logits,
        batch_size=config.evaluate.batch_size,
        max_pixels=config.images.max_pixels,
    )
    p = predictions_of(outcome, card.temperature)
    matrix, classes = confusion_matrix(p), per_class(p)
    metrics = {
        **summarize(p),
        "test_data_fingerprint": outcome.fingerprint,
        "model_sha256": card.sha256,
        "unreadable": outcome.reasons,
        "no_pictures_by_name": outcome.others,
        "reliability": reliability_rows(p),
        "confusion_matrix": {"classes": card.class_names, "counts": matrix.tolist()},
        "per_class": classes,
    }
    report = outputs["report_dir"]
    write_json(report / "metrics.json", metrics)
    write_csv(report / "per_class.csv", classes)
    write_csv(report / "predictions.csv", prediction_rows(p))
    draw_confusion_matrix(matrix, card.class_names).save(report / "confusion_matrix.png", optimize=True)
    (report / "report.html").write_text(render(metrics, classes, report / "confusion_matrix.png"), encoding="utf-8")
    write_json(outputs["accuracy_file"], {key: metrics[key] for key in ACCURACY_KEYS})
