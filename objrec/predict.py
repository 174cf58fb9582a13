"""``python predict.py``: label images with a model folder, the model in production, or an endpoint."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from objrec.client.inputs import ImageInput, images_of, read, reason_of
from objrec.client.output import cell, printable
from objrec.config.cli import guard
from objrec.config.defaults import default_values
from objrec.config.errors import UserError
from objrec.images.decode import ImageError

Ranked = list[tuple[str, float]]
# an encoded image -> (label, probability), best first, the model's version, whether it is none of the classes
Classify = Callable[[bytes], tuple[Ranked, str, bool]]

EXAMPLES = """
  python predict.py cat.jpg
  python predict.py photos/ 'more/*.png' https://example.org/dog.jpg --csv > labels.csv
  find . -name '*.jpg' | python predict.py -         file names on stdin, or one image:  python predict.py - < cat.jpg
  find . -name '*.jpg' -print0 | python predict.py -0
  python predict.py cat.jpg --endpoint http://127.0.0.1:8000

Exit status: 0 if all images were labelled, 1 if some failed (see stderr), 2 for a usage error.
"""


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """What became of one image: ``predictions``, best first, or an ``error``. ``unknown``: none of the classes."""

    name: str
    predictions: Ranked
    error: str | None = None
    model_version: str | None = None
    unknown: bool = False


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="predict.py",
        description="Label images with a local model or an endpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("images", nargs="*", metavar="IMAGE|FOLDER|GLOB|URL|-", help="images to label; - reads stdin")
    p.add_argument("-0", "--null", action="store_true", help="file names on stdin end with a zero byte (find -print0)")
    p.add_argument("--image_url", "--image-url", action="append", default=[], metavar="URL", help="the same as URL")
    p.add_argument("--model", type=Path, metavar="DIR", help="a model folder; default: the production model")
    p.add_argument("--endpoint", metavar="URL", help="use this endpoint instead of a local model")
    p.add_argument("--key", default=os.environ.get("OBJREC_KEY"), help="the endpoint's API key, or set OBJREC_KEY")
    p.add_argument("--registry", type=Path, metavar="DIR", help="the registry of the production model")
    p.add_argument("--top-k", "--top_k", type=int, metavar="K", help="number of labels per image")
    p.add_argument("--unknown", action="store_true", help="reject images of none of the classes")
    p.add_argument("--json", action="store_true", help="one JSON object per line")
    p.add_argument("--csv", action="store_true", help="one row per image")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    _mend_streams()
    status = guard(lambda: _main(options))
    if status and arguments is None:  # threads may wait for an endpoint, and the end of this process would for them
        with contextlib.suppress(OSError, AttributeError):  # closed
            sys.stdout.flush()
        os._exit(status)
    return status


def _mend_streams() -> None:
    """Let no stream that is closed, and no name that is not of its encoding, end the run."""
    if sys.stderr is None:  # or print would take stdout for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _main(options: argparse.Namespace) -> int:
    names = [*options.images, *options.image_url]
    if options.null and "-" not in names:
        names.append("-")
    if not names:
        raise UserError("name an image, a folder or a URL: python predict.py IMAGE (--help shows more)")
    if options.top_k is not None and options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: should be at least 1")
    if options.json and options.csv:
        raise UserError("--json and --csv cannot be combined: choose one")
    if options.model is not None and options.endpoint is not None:
        raise UserError("--model and --endpoint cannot be combined: choose one")
    if sys.stdout is None:
        raise UserError("standard output is closed: labels cannot be written")
    classify, workers = _remote(options) if options.endpoint else _local(options)
    with _writing():
        show = _shower(options, sys.stdout)
    done = failed = 0
    results = label(images_of(names, sys.stdin, null=options.null), classify, workers=workers)
    with _progress() as step, contextlib.closing(results):
        for result in results:
            done += 1
            failed += result.error is not None
            if result.error is not None and not options.json:
                _say(f"{result.name}: {result.error}")
            with _writing():
                show(result)
            step(done, failed)
    if done > 1 and failed:
        _say(f"{failed} of {done} could not be labelled")
    return 1 if failed else 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk under stderr is no reason to stop
        print(printable(text), file=sys.stderr)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Raise UserError where the results cannot be written, but not where their reader has enough of them."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        raise UserError(f"the results cannot be written: {reason_of(error)}") from None


def label(images: Iterable[ImageInput], classify: Classify, *, workers: int) -> Generator[ImageLabels, None, None]:
    """Yield a result for every image, in order; a bad one is a result too.

    ``workers`` images are worked on at once and a few more wait, so that memory does not grow with their number.
    """
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[ImageLabels]] = deque()
    try:
        for image in images:
            ahead.append(pool.submit(_label_one, image, classify))
            if len(ahead) >= 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what hangs must hold up neither an error nor Ctrl-C


def _label_one(image: ImageInput, classify: Classify) -> ImageLabels:
    if image.error is not None:
        return ImageLabels(image.name, [], image.error)
    try:
        predictions, version, unknown = classify(read(image))
    except ImageError as error:
        return ImageLabels(image.name, [], error.reason)
    except OSError as error:
        return ImageLabels(image.name, [], reason_of(error))
    return ImageLabels(image.name, predictions, model_version=version, unknown=unknown)


def _local(options: argparse.Namespace) -> tuple[Classify, int]:
    from objrec.images.budget import Budget, available_memory
    from objrec.inference.predictor import Predictor
    from objrec.inference.scores import softmax
    from objrec.system.cores import available_cores

    defaults = default_values()
    model_dir = options.model or production_dir(options.registry or Path(defaults["registry_dir"]))
    workers = available_cores()
    predictor = Predictor.load(
        model_dir,
        threads=1,
        workers=workers,
        max_pixels=defaults["images"]["max_pixels"],
        verify=options.model is not None,  # the registry has checked its own
    )
    top_k = options.top_k or defaults["serve"]["top_k"]
    if options.unknown and predictor.card.unknown is None:
        raise UserError(f"--unknown: {model_dir} has no threshold for unknown images: train it again")

    budget = Budget(available_memory() // 2)  # all cores on images of the largest size could take more than there is

    def classify(data: bytes) -> tuple[Ranked, str, bool]:
        logits = predictor.logits(predictor.pixels(data, budget=budget)[None])
        ranked = predictor.ranked(softmax(logits, predictor.card.temperature)[0], top_k)
        score, threshold = predictor.known_score(logits) if options.unknown else (0.0, 0.0)
        return ranked, predictor.card.sha256, score < threshold

    return classify, workers


def _remote(options: argparse.Namespace) -> tuple[Classify, int]:
    from objrec.client.endpoint import EndpointClient

    endpoint = EndpointClient(
        options.endpoint,
        key=options.key,
        top_k=options.top_k or default_values()["serve"]["top_k"],
        unknown=options.unknown,
    )
    return endpoint.classify, 4


def production_dir(registry_dir: Path) -> Path:
    """Return the folder of the model in production. Raises UserError when there is none, or it is damaged."""
    from objrec.model_registry.store import FolderRegistry

    registry = FolderRegistry(registry_dir)
    record = registry.production()
    if record is None:
        raise UserError(
            f"no model in {registry.root} is in production: run python -m objrec.pipeline, or use --model DIR"
        )
    registry.check(record.sha256)
    return registry.model_dir(record.sha256)


def _shower(options: argparse.Namespace, out: IO[str]) -> Callable[[ImageLabels], None]:
    """Return what prints a result, bad ones too where the format has a place for them."""
    if options.csv:
        return _csv_shower(options, out)

    def show(result: ImageLabels) -> None:
        if options.json:
            print(as_json(result), file=out, flush=True)
        elif result.error is None:
            words = "  ".join(f"{name} {100 * p:.1f} %" for name, p in result.predictions)
            line = printable(f"{result.name}  {'unknown: ' if result.unknown else ''}{words}")
            print(line, file=out, flush=True)

    return show


def as_json(result: ImageLabels) -> str:
    """Return one line: what the endpoint answers, and the image's name; or the name and an error."""
    import json

    if result.error is not None:
        return json.dumps({"image": result.name, "error": result.error})
    best, probability = result.predictions[0]
    content = {
        "image": result.name,
        "label": None if result.unknown else best,
        **({"reason": "unknown"} if result.unknown else {}),
        "probability": probability,
        "predictions": [{"label": name, "probability": p} for name, p in result.predictions],
        "model_version": result.model_version,
    }
    return json.dumps(content)


def _csv_shower(options: argparse.Namespace, out: IO[str]) -> Callable[[ImageLabels], None]:
    """Return what writes a row: names without control characters, and the other labels as a JSON object."""
    import csv
    import json

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "label", "probability", "others", "error"])
    out.flush()

    def show(result: ImageLabels) -> None:
        best = result.predictions[0] if result.predictions else ("", "")
        rest = {name: round(p, 4) for name, p in result.predictions[1:]}
        label = "" if result.unknown else best[0]
        error = result.error or ("unknown" if result.unknown else "")
        writer.writerow([cell(result.name), cell(label), best[1], json.dumps(rest) if rest else "", cell(error)])
        out.flush()

    return show


def _progress() -> Any:
    """Return a context whose value takes (done, failed); it shows a line where results do not go to the terminal."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return contextlib.nullcontext(lambda done, failed: None)
    return _Line()


class _Line:
    """A line on stderr that counts, at most ten times a second."""

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.completed} images"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[red]{task.fields[bad]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        task = self._bar.add_task("", total=None, rate="", bad="")

        def step(done: int, failed: int) -> None:
            seconds = self._bar.tasks[task].elapsed or 0.001
            bad = f"{failed} failed" if failed else ""
            self._bar.update(task, completed=done, rate=f"{done / seconds:.0f}/s", bad=bad)

        return step

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


if __name__ == "__main__":
    sys.exit(main())
