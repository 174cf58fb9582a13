"""Questions about a model, answered in a process of their own.

A runtime that crashes on a model takes only the probe with it, and whoever asks (the deploy step, perhaps inside the
pipeline runner) imports no runtime. ``python -m objrec.serving.probe`` reads a JSON question from stdin and answers
with JSON on stdout.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError

TIMEOUT = 3600.0  # seconds; a test set of a million pictures fits
CHANCE = 1e-6  # a model that is what its accuracy file says fails the smoke test once in a million deployments


def ask(question: str, **arguments: Any) -> dict[str, Any]:
    """Answer ``question`` (``smoke`` or ``right``) in another process. Raises UserError with what went wrong there."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "objrec.serving.probe"],
        input=json.dumps({"question": question, **arguments}, default=str),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise UserError(f"the model could not be tried: {last[0]}") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def smoke(model_dir: Path, test_dir: Path, *, accuracy: float, max_pixels: int) -> str:
    """Try a model on pictures of the test set; return the smoke file's text.

    Raises:
        UserError: when it answers with anything but probabilities, or so much worse than ``accuracy`` that it cannot
            be the model that was evaluated.
    """
    from objrec.serving.predictor import Predictor
    from objrec.serving.smoke import PICTURES, Smoke, choose, labelled_pictures

    predictor = Predictor.load(model_dir, max_pixels=max_pixels, verify=False)  # the registry has just verified it
    chosen = choose(labelled_pictures(test_dir), PICTURES)
    data, answers, right = [], [], 0
    for label, path in chosen:
        picture = path.read_bytes()
        row = predictor.probabilities(predictor.pixels(picture)[None])[0].tolist()
        if len(row) != len(predictor.card.class_names) or not all(math.isfinite(p) for p in row):
            raise UserError(f"the model answered {path.name} with {len(row)} values, not a probability for each class")
        right += predictor.card.class_names[row.index(max(row))] == label
        data.append(picture)
        answers.append(row)
    if chance_of_at_most(right, len(chosen), accuracy) < CHANCE:
        raise UserError(
            f"the model is right on {right} of {len(chosen)} smoke pictures; its accuracy file says {accuracy:.3f}: "
            "model_dir, accuracy_file and test_dir do not belong together; run the evaluate step again"
        )
    return Smoke(data, answers).dumps()


def right(model_dir: Path, test_dir: Path, *, max_pixels: int) -> list[bool]:
    """Return for each picture of the test set whether the model is right."""
    from objrec.serving.predictor import Predictor
    from objrec.serving.smoke import labelled_pictures

    predictor = Predictor.load(model_dir, max_pixels=max_pixels)
    names = predictor.card.class_names
    return [
        names[int(predictor.logits(predictor.pixels(path)[None])[0].argmax())] == label
        for label, path in labelled_pictures(test_dir)
    ]


def chance_of_at_most(successes: int, n: int, p: float) -> float:
    """Return P(X <= successes) for X ~ Binomial(n, p)."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes + 1))


def main() -> None:
    asked = json.load(sys.stdin)
    model_dir, test_dir = Path(asked["model_dir"]), Path(asked["test_dir"])
    answer: dict[str, Any]
    try:
        if asked["question"] == "smoke":
            text = smoke(model_dir, test_dir, accuracy=asked["accuracy"], max_pixels=asked["max_pixels"])
            answer = {"smoke": text}
        else:
            answer = {"right": right(model_dir, test_dir, max_pixels=asked["max_pixels"])}
    except (UserError, OSError, ValueError) as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
