"""``python -m objrec.export model_dir=MODEL test_dir=TEST export_dir=OUT``: a model in other formats, each checked."""

from __future__ import annotations

import sys
from pathlib import Path

from objrec.config.cli import command, overrides_of

HELP = """Export a model to ONNX, OpenVINO and torch.export, and compare each with the original on real images.

usage: python -m objrec.export model_dir=MODEL test_dir=TEST [key=value ...]

  model_dir=DIR                a model folder
  test_dir=DIR                 DIR/<class>/<image>: images to compare the formats on
  export_dir=DIR               where to write; default: a new folder under runs/export
  export.formats=[onnx,openvino,torch_export]    which formats; openvino needs: pip install 'objrec[export]'
  export.int8=true train_dir=DIR                 also an int8 model, calibrated on training images

preprocessing.json describes the model's input; the ONNX file's metadata holds the same."""


def main() -> None:
    sys.exit(command(HELP, lambda arguments: run(overrides_of(arguments))))


def run(overrides: list[str]) -> None:
    """Export, print the comparison. Raises UserError for what the user can mend; nothing is left behind then."""
    from objrec.config.errors import UserError
    from objrec.config.load import load_config
    from objrec.runner.runner import check_folders, forget_run, new_run_dir
    from objrec.system import outputs

    config = load_config(overrides)
    missing = [name for name in ("model_dir", "test_dir") if getattr(config, name) is None]
    if missing:
        raise UserError([f"{name}=DIR is needed" for name in missing])
    assert config.model_dir is not None and config.test_dir is not None
    from objrec.inference.export import USAGE, export

    inputs = {n: Path(v) for n in ("model_dir", "test_dir", "train_dir") if (v := getattr(config, n)) is not None}
    if config.export_dir is None:
        check_folders(config, inputs)
    elif problems := outputs.check({"export_dir": (Path(config.export_dir), "folder")}, inputs):
        raise UserError(problems)
    out = Path(config.export_dir) if config.export_dir is not None else new_run_dir(config, "export") / "export"
    try:
        with outputs.placed("export_dir", out, "folder") as folder:
            checks = export(
                inputs["model_dir"],
                folder,
                formats=config.export.formats,
                int8=config.export.int8,
                test_dir=inputs["test_dir"],
                train_dir=inputs.get("train_dir"),
                num_calibration=config.export.calibration,
                batch_size=config.evaluate.batch_size,
                max_pixels=config.images.max_pixels,
            )
    except UserError:
        if config.export_dir is None and config.run_dir is None:
            forget_run(out.parent)
        raise
    print(f"{'format':<13}{'images':>9}{'max diff':>11}{'agreement':>11}{'accuracy':>10}{'original':>10}")
    for c in checks:
        numbers = f"{c.num_images:>9}{c.difference:>11.2g}{c.agreement:>11.2%}{c.accuracy:>10.4f}"
        print(f"{c.format:<13}{numbers}{c.original_accuracy:>10.4f}")
    for c in checks:
        print(f"  {USAGE[c.format]}")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
