"""Questions about a model, answered in a process of their own.

A runtime that crashes on a model takes only the probe with it, and the caller (the deploy step, perhaps inside the
pipeline runner) imports no runtime. ``python -m objrec.deployment.acceptance`` reads a JSON question from stdin and
answers with JSON on stdout.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objrec.config.environment import child_environment
from objrec.config.errors import UserError
from objrec.images.decode import ImageError
from objrec.inference.smoke import IMAGES
from objrec.system.files import permit, write_atomically

if TYPE_CHECKING:
    from objrec.inference.predictor import Predictor

TIMEOUT = 3600.0  # seconds; a test set of a million images fits
CHANCE = 1e-6  # a model that is what its accuracy file says fails the smoke test once in a million deployments


def ask(question: str, **arguments: Any) -> Any:
    """Answer ``question`` (``try`` or ``right``) in another process. Raises UserError with what went wrong there."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "objrec.deployment.acceptance"],
        input=json.dumps({"question": question, "arguments": arguments}, default=str),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=child_environment(PYTHONPATH=paths),
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise UserError(f"the model could not be tried: {last[0]}") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["answer"]


def try_model(
    model_dir: Path,
    test_dir: Path,
    registry_dir: Path,
    *,
    accuracy: float,
    runtime: str,
    precision: str,
    workers: int | None,
    max_accuracy_drop: float,
    max_pixels: int,
) -> dict[str, Any]:
    """Try a registered model on images of the test set; write its smoke file and how to run it best.

    Raises:
        UserError: when it answers with anything but probabilities, or so much worse than ``accuracy`` that it cannot
            be the model that was evaluated, or no runtime may serve it.
    """
    from objrec.inference.predictor import Predictor
    from objrec.inference.runtime_choice import tune, tuned_dir
    from objrec.inference.smoke import Smoke, images_in_turns, smoke_file
    from objrec.system.cores import available_cores

    predictor = Predictor.load(model_dir, max_pixels=max_pixels, verify=False)  # the registry has just verified it
    names = predictor.card.class_names
    images = images_in_turns(test_dir)
    drawn = random.Random(0).sample(images, len(images))  # the accuracy is that of the test set as it is
    counted = _answers(predictor, drawn)
    if not counted:
        raise UserError(f"{test_dir} has no readable image to try the model on")
    check_accuracy(sum(names[row.index(max(row))] == label for label, _, row in counted), len(counted), accuracy)
    in_turns = _answers(predictor, images)
    smoke = Smoke([data for _, data, _ in in_turns], [row for _, _, row in in_turns])
    found = tune(
        model_dir,
        tuned_dir(registry_dir, predictor.card.sha256),
        smoke=smoke,
        test_images=images,
        runtime=runtime,
        precision=precision,
        workers=workers or available_cores(),
        max_accuracy_drop=max_accuracy_drop,
        max_pixels=max_pixels,
    )
    path = smoke_file(registry_dir, predictor.card.sha256)
    path.parent.mkdir(exist_ok=True)
    permit(path.parent, 0o700)  # images of the test set, which may be private
    write_atomically(path, smoke.dumps(), mode=0o600)
    return found.model_dump()


def _answers(predictor: Predictor, images: Sequence[tuple[str, Path]]) -> list[tuple[str, bytes, list[float]]]:
    """Return label, file and probabilities of the first readable images. Raises UserError for any other answer."""
    found = []
    for label, path in images:
        data = path.read_bytes()
        try:
            pixels = predictor.pixels(data)
        except ImageError:
            continue
        row = predictor.probabilities(pixels[None])[0].tolist()
        if len(row) != len(predictor.card.class_names) or not all(math.isfinite(p) for p in row):
            raise UserError(f"the model answered {path.name} with something else than a probability for each class")
        found.append((label, data, row))
        if len(found) == IMAGES:
            break
    return found


def right(model_dir: Path, test_dir: Path, *, max_pixels: int) -> list[bool]:
    """Return for each image of the test set whether the model is right; on an unreadable one it is not."""
    from objrec.inference.predictor import Predictor
    from objrec.inference.smoke import images_in_turns

    predictor = Predictor.load(model_dir, max_pixels=max_pixels)
    names = predictor.card.class_names

    def is_right(label: str, path: Path) -> bool:
        try:
            pixels = predictor.pixels(path)
        except ImageError:
            return False
        return names[int(predictor.logits(pixels[None])[0].argmax())] == label

    return [is_right(label, path) for label, path in images_in_turns(test_dir)]


def check_accuracy(right: int, count: int, accuracy: float) -> None:
    """Raise UserError where a model of this accuracy would hardly be right on so few of ``count`` images."""
    if chance_of_at_most(right, count, accuracy) < CHANCE:
        raise UserError(
            f"the model is right on {right} of {count} images; its accuracy file says {accuracy:.3f}: "
            "model_dir, accuracy_file and test_dir do not belong together; run the evaluate step again"
        )


def chance_of_at_most(successes: int, n: int, p: float) -> float:
    """Return P(X <= successes) for X ~ Binomial(n, p)."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes + 1))


def main() -> None:
    given = json.load(sys.stdin)
    arguments = {k: Path(v) if k.endswith("_dir") else v for k, v in given["arguments"].items()}
    questions: dict[str, Any] = {"try": try_model, "right": right}
    answer: dict[str, Any]
    try:
        answer = {"answer": questions[given["question"]](**arguments)}
    except (UserError, OSError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
