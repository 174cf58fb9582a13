"""What a person sees of a training: lines, a bar, loggers, a summary."""

from __future__ import annotations

import io
import re
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.training import QUIET, TINY, make_data, train

from objrec.config.load import config_dir, load_config
from objrec.models.card import ModelCard
from objrec.runner.train import summary
from objrec.sweeps.trial import Pruned
from objrec.training.callbacks.trial_report import report_epochs_to
from objrec.training.display import progress

pytestmark = QUIET


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def trainer(*, epochs: int, batches: int) -> Any:
    metrics = {"val/acc": torch.tensor(0.5), "train/loss": torch.tensor(1.25), "other": torch.tensor(0.0)}
    return SimpleNamespace(
        num_training_batches=batches,
        max_epochs=epochs,
        check_val_every_n_epoch=1,
        current_epoch=0,
        world_size=1,
        is_global_zero=True,
        callback_metrics={},
        later=metrics,
    )


def play(shown: progress.TrainingProgress, fake: Any, module: Any = None) -> None:
    """Go through a training's hooks: batches of 8 images, 10 ms each."""
    batch = (torch.zeros(8, 3, 4, 4), torch.zeros(8))
    shown.on_train_start(fake, module)
    for epoch in range(fake.max_epochs):
        fake.current_epoch = epoch
        shown.on_train_epoch_start(fake, module)
        for i in range(fake.num_training_batches):
            time.sleep(0.01)
            shown.on_train_batch_end(fake, module, {"loss": torch.tensor(1.5)}, batch, i)
        shown.on_validation_batch_end(fake, module)
        fake.callback_metrics = fake.later
        shown.on_train_epoch_end(fake, module)
    shown.on_train_end(fake, module)


def test_without_a_terminal_a_line_an_epoch_tells_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    play(progress.TrainingProgress(on_terminal=False), trainer(epochs=2, batches=5))
    first, second = capsys.readouterr().out.splitlines()
    seen = re.fullmatch(r"epoch 1/2: train/loss 1.2500, val/acc 0.5000, 0\.\d s, (\d+) images/s, \d+ s left", first)
    assert seen is not None and 50 < int(seen[1]) <= 800
    assert re.fullmatch(r"epoch 2/2: train/loss 1.2500, val/acc 0.5000, 0\.\d s, \d+ images/s", second)


def test_on_a_terminal_a_bar_tells_speed_loss_accuracy_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    seen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=seen, force_terminal=True, width=120))
    play(progress.TrainingProgress(on_terminal=True), trainer(epochs=2, batches=3))
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen.getvalue())
    assert re.search(r"epoch 1/2 .* 3/3 \d+ images/s, loss 1\.500, val/acc -, \d+ s left", text)
    assert re.search(r"epoch 2/2 .* 3/3 \d+ images/s, loss 1\.500, val/acc 0\.500, 0 s left", text)


def test_the_loss_is_not_read_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    shown = progress.TrainingProgress(on_terminal=False)
    monkeypatch.setattr(shown, "_show", lambda *_: looks.append(1))
    monkeypatch.setattr(progress, "REFRESH", 3600.0)
    shown._looked = time.monotonic()
    play(shown, trainer(epochs=1, batches=20))
    assert len(looks) == 1  # the last step of the epoch


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07 min"), (3599.6, "1:00 h"), (7500, "2:05 h")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_who_watches_a_training_may_end_it(data: Path, tmp_path: Path) -> None:
    seen = []

    def watcher(epoch: int, metrics: Any) -> None:
        seen.append((epoch, sorted(metrics)))
        if epoch == 1:
            raise Pruned(epoch, metrics)

    with report_epochs_to(watcher), pytest.raises(Pruned):
        train(data, tmp_path, "train.max_epochs=4", "train.limit_batches=1")
    names = ["train/acc", "train/loss", "val/acc", "val/loss"]
    assert [(epoch, set(names) <= set(seen_names)) for epoch, seen_names in seen] == [(0, True), (1, True)]


def test_the_summary_says_how_good_where_and_what_next(data: Path, tmp_path: Path) -> None:
    card = train(data, tmp_path, "debug=fast_dev_run")
    said = summary(card, load_config([*TINY, "debug=fast_dev_run"]), tmp_path, None)
    assert re.match(r"best epoch +1 of 1\nval/", said)
    for part in (f" {tmp_path}\n", "curves.png", f"model_dir={tmp_path} test_dir=DIR", f"--model {tmp_path}"):
        assert part in said


LOGGERS = sorted(f.stem for f in (Path(config_dir()) / "logger").glob("*.yaml"))


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_is_told_metrics_and_settings(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name != "csv":
        pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["debug=fast_dev_run", f"logger={name}", f"runs_dir={tmp_path / 'runs'}"]
    monkeypatch.setenv("OBJREC_SERVE_KEY", "hush")
    train(data, tmp_path / "model", *words)
    CHECKS[name](tmp_path)


def csv_is_written(folder: Path) -> None:
    head = (folder / "model" / "training" / "metrics.csv").read_text().splitlines()[0]
    assert {"epoch", "val/acc", "train/loss"} <= set(head.split(","))


def tensorboard_is_written(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = folder / "model" / "training" / "logs"
    (file,) = logs.glob("events.out.tfevents.*")
    events = EventAccumulator(str(logs)).Reload()
    assert "val/acc" in events.Tags()["scalars"]
    assert "max_epochs: 1" in (logs / "hparams.yaml").read_text()
    assert b"hush" not in file.read_bytes()


def mlflow_is_written(folder: Path) -> None:
    database = sqlite3.connect(folder / "runs" / "mlflow.db")
    try:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        params = dict(database.execute("select key, value from params"))
        metrics = {key for (key,) in database.execute("select key from metrics")}
    finally:
        database.close()
    assert params["train/max_epochs"] == "1" and "hush" not in params.values()
    assert "val/acc" in metrics


CHECKS = {"csv": csv_is_written, "tensorboard": tensorboard_is_written, "mlflow": mlflow_is_written}


def test_an_interrupted_training_stays_one_mlflow_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["train.max_epochs=3", "train.limit_batches=1", "logger=mlflow", f"runs_dir={tmp_path / 'runs'}"]

    def killed(epoch: int, metrics: Any) -> None:
        if epoch == 1:
            raise SystemExit(9)

    with report_epochs_to(killed), pytest.raises(SystemExit):
        train(data, tmp_path / "model", *words)
    assert isinstance(train(data, tmp_path / "model", *words), ModelCard)
    mlflow_is_written_once = sqlite3.connect(tmp_path / "runs" / "mlflow.db")
    try:
        assert mlflow_is_written_once.execute("select count(*) from runs").fetchone() == (1,)
    finally:
        mlflow_is_written_once.close()


def test_inside_a_job_the_platforms_run_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objrec.training.display import loggers

    monkeypatch.setenv("MLFLOW_RUN_ID", "the-jobs-run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://studio.example")
    built: list[Any] = []

    def construct(target: str, options: Any, key: str) -> Any:
        built.append((target, dict(options), key))
        return SimpleNamespace(run_id=options["run_id"])

    monkeypatch.setattr(loggers, "instantiate", construct)
    nodes = load_config(["logger=mlflow"]).logger
    loggers.make_loggers(nodes, training_dir=tmp_path, runs_dir=tmp_path / "runs")
    ((_, options, key),) = built
    assert (options["run_id"], options["tracking_uri"], key) == (
        "the-jobs-run",
        "https://studio.example",
        "logger.mlflow",
    )
    assert not list(tmp_path.iterdir())  # neither a database nor a note of another run
