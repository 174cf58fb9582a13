"""The evaluate step on a small model folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.evaluation_model import COLOURS, evaluate, write_images, write_model

from objrec.config.errors import UserError
from objrec.images.image_folder import fingerprint
from objrec.models.card import file_sha256
from objrec.steps.evaluate import choose_runtime

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluate")
    return write_model(root / "model", sorted(COLOURS)), write_images(root / "test", sorted(COLOURS))


def test_accuracy_file_and_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    accuracy, report = evaluate(tmp_path, model_dir=model, test_dir=test)
    assert 0.5 < accuracy["accuracy"] < 1
    assert accuracy["num_images"] == 48
    low, high = accuracy["confidence_interval"]
    assert low < accuracy["accuracy"] < high
    assert accuracy["test_data_fingerprint"] == fingerprint(test)
    assert accuracy["model_sha256"] == file_sha256(model / "model.safetensors")
    names = {"report.html", "confusion_matrix.png", "per_class.csv", "predictions.csv", "metrics.json"}
    assert {p.name for p in report.iterdir()} >= names


def test_same_inputs_same_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    _, first = evaluate(tmp_path / "a", model_dir=model, test_dir=test)
    _, second = evaluate(tmp_path / "b", "evaluate.batch_size=7", model_dir=model, test_dir=test)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_classes_are_matched_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    everything, _ = evaluate(tmp_path / "all", model_dir=model, test_dir=test)
    reordered = write_model(tmp_path / "reordered", sorted(COLOURS)[::-1])
    _, report = evaluate(tmp_path / "reordered-out", model_dir=reordered, test_dir=test)
    assert json.loads((report / "metrics.json").read_text())["accuracy"] == pytest.approx(
        everything["accuracy"], abs=0.1
    )  # the disturbance of the weights differs, the meaning of the folders does not
    part = tmp_path / "part"
    for name in ("red", "green"):
        shutil.copytree(test / name, part / name)
    accuracy, report = evaluate(tmp_path / "part-out", model_dir=model, test_dir=part)
    rows = {r["class"]: r for r in json.loads((report / "metrics.json").read_text())["per_class"]}
    assert accuracy["num_images"] == 24
    assert rows["red"]["support"] == rows["green"]["support"] == 12 and rows["blue"]["support"] == 0


def test_unknown_class_names_are_all_told_with_the_cure(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    other = tmp_path / "test"
    shutil.copytree(test / "red", other / "reed")
    shutil.copytree(test / "red", other / "octarine")
    shutil.copytree(test / "red", other / "red")
    with pytest.raises(UserError) as caught:
        evaluate(tmp_path / "out", model_dir=model, test_dir=other)
    text = str(caught.value)
    assert "'reed'" in text and "Did you mean 'red'?" in text and "'octarine'" in text and "Rename" in text


def test_nothing_readable_is_zero_not_a_crash(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "a.png").write_bytes(b"nothing")
    accuracy, report = evaluate(tmp_path / "out", model_dir=folders[0], test_dir=tmp_path / "test")
    assert (accuracy["accuracy"], accuracy["num_images"], accuracy["num_unreadable"]) == (0, 1, 1)
    assert "could not be read" in (report / "report.html").read_text()


def test_sources_and_licences_come_from_the_manifest(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    rows = [{"class": "red", "status": "corrupt", "sha256": None, "source": "web"}]
    for i, path in enumerate(sorted(test.rglob("*.jpg"))):
        licence, creator = ("by", "Ada <b>") if i % 3 else ("cc0", None)
        rows.append(
            {
                "class": path.parent.name,
                "status": "kept",
                "sha256": file_sha256(path),
                "source": "web",
                "license": licence,
                "creator": creator,
                "landing_page": "https://example.org/p" if i % 2 else "javascript:alert(1)",
                "width": 300,
                "height": 200,
            }
        )
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = evaluate(tmp_path / "out", "evaluate.slices=true", model_dir=model, test_dir=test, raw_data_dir=raw)
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["data"]["status"] == {"kept": 48, "corrupt": 1}
    assert metrics["data"]["license"] == {"by": 32, "cc0": 16}
    slices = {(r["by"], r["slice"]): r["num_images"] for r in metrics["slices"]}
    assert slices == {
        ("size", "under 256 px"): 48,
        ("source", "web"): 48,
        ("license", "by"): 32,
        ("license", "cc0"): 16,
    }
    page = (report / "report.html").read_text()
    assert "Ada &lt;b&gt;" in page and "javascript:" not in page


def test_command_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    broken = tmp_path / "my test (1)"
    shutil.copytree(test, broken)
    (broken / "red" / "broken.png").write_bytes(b"\x89PNG")
    done = command(tmp_path, f"model_dir={model}", f"test_dir={broken}", f"evaluate.compare={model}")
    assert done.returncode == 0, done.stderr
    assert "of 49; 95 % interval" in done.stdout
    assert "unreadable, counted as wrong: 1: red/broken.png" in done.stdout
    assert "McNemar p = 1" in done.stdout
    report = Path(done.stdout.splitlines()[-1].removeprefix("report").strip())
    assert (tmp_path / report).is_file()
    assert (tmp_path / report.parent.parent / "accuracy.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "model_dir"),
        (["model_dir=nowhere", "test_dir=nowhere"], "nowhere"),
        (["model_dir={test}", "test_dir={test}"], "is not a model folder"),
        (["model_dir={model}", "test_dir={model}"], "has no images"),
        (["model_dir={model}", "test_dir={test}", "evaluate.slicse=true"], "Did you mean 'evaluate.slices'"),
    ],
)
def test_mistakes_are_told_in_a_line(
    folders: tuple[Path, Path], tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = command(tmp_path, *(a.format(model=folders[0], test=folders[1]) for a in arguments))
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluation_imports_no_torch(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    program = (
        "import sys; from objrec.evaluate import run;"
        f"run(['model_dir={model}', 'test_dir={test}']);"
        "sys.exit(' '.join({'torch', 'lightning', 'timm', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "objrec.evaluate", *arguments]
    return subprocess.run(line, cwd=cwd, env=ENV, capture_output=True, text=True)


def test_torch_is_chosen_only_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objrec.steps.evaluate.NVIDIA_DRIVER", tmp_path / "none")
    assert choose_runtime("auto", "auto") == "onnxruntime"
    assert choose_runtime("torch", "cpu") == "torch"
    monkeypatch.setattr("objrec.steps.evaluate.NVIDIA_DRIVER", tmp_path)
    assert choose_runtime("auto", "auto") == "torch"
    assert choose_runtime("auto", "cpu") == "onnxruntime"


@pytest.mark.slow
def test_both_runtimes_find_the_same(tmp_path: Path) -> None:
    import torch

    from objrec.models.backbones import build_backbone
    from objrec.models.folder import save_model_folder

    torch.manual_seed(0)
    backbone = {"name": "resnet18", "small_input": True, "drop_rate": 0.0}
    save_model_folder(
        tmp_path / "model",
        build_backbone(**backbone, num_classes=4, image_size=32).eval(),
        images=torch.rand(4, 3, 32, 32),
        config={},
        backbone=backbone,
        class_names=sorted(COLOURS),
        input_size=32,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        interpolation="bicubic",
        training_data_fingerprint="0" * 64,
        metrics={},
    )
    test = write_images(tmp_path / "test", sorted(COLOURS))
    found = []
    for runtime in ("onnxruntime", "torch"):
        override = f"compute.runtime={runtime}"
        _, report = evaluate(tmp_path / runtime, override, model_dir=tmp_path / "model", test_dir=test)
        found.append(json.loads((report / "metrics.json").read_text()))
        assert "class activation on the 4 x 4 feature map" in (report / "report.html").read_text()
    assert found[0]["confusion_matrix"] == found[1]["confusion_matrix"]
    assert found[0]["log_loss"] == pytest.approx(found[1]["log_loss"], abs=1e-5)
