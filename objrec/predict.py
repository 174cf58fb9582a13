"""``python predict.py``: label pictures with a model folder, the model in production, or an endpoint."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from objrec.config.cli import guard
from objrec.config.errors import UserError
from objrec.images.decode import SUFFIXES, ImageError

Ranked = list[tuple[str, float]]
# an encoded picture -> (label, probability), best first, the model's version, whether it is none of the classes
Classify = Callable[[bytes], tuple[Ranked, str, bool]]

EXAMPLES = """
  python predict.py cat.jpg
  python predict.py photos/ 'more/*.png' https://example.org/dog.jpg --csv > labels.csv
  find . -name '*.jpg' | python predict.py -         names on stdin, or one picture:  python predict.py - < cat.jpg
  python predict.py cat.jpg --endpoint http://127.0.0.1:8000

Exit status: 0 all labelled, 1 some were not (said on stderr), 2 nothing could be done.
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """Something to label: a name for people, and where its bytes are. ``error`` when it is known to be none."""

    name: str
    data: bytes | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one picture: ``predictions``, best first, or an ``error``. ``unknown``: none of the classes."""

    name: str
    predictions: Ranked
    error: str | None = None
    model_version: str | None = None
    unknown: bool = False


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="predict.py",
        description="What is on these pictures?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("pictures", nargs="*", metavar="IMAGE|FOLDER|GLOB|URL|-", help="what to label; - reads stdin")
    p.add_argument("--image_url", "--image-url", action="append", default=[], metavar="URL", help="the same as URL")
    p.add_argument("--model", type=Path, metavar="DIR", help="a model folder; otherwise the model in production")
    p.add_argument("--endpoint", metavar="URL", help="ask this endpoint instead of a model here")
    p.add_argument("--key", default=os.environ.get("OBJREC_KEY"), help="the endpoint's key, or set OBJREC_KEY")
    p.add_argument("--registry", type=Path, metavar="DIR", help="the registry that says what is in production")
    p.add_argument("--top-k", "--top_k", type=int, metavar="K", help="labels for each picture")
    p.add_argument("--unknown", action="store_true", help="no label for pictures of none of the classes")
    p.add_argument("--json", action="store_true", help="a JSON object a line")
    p.add_argument("--csv", action="store_true", help="a row a picture")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return guard(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    names = [*options.pictures, *options.image_url]
    if not names:
        raise UserError("name a picture, a folder or a URL: python predict.py PICTURE (--help shows more)")
    if options.top_k is not None and options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: should be at least 1")
    if options.json and options.csv:
        raise UserError("--json and --csv contradict each other: choose one")
    if options.model is not None and options.endpoint is not None:
        raise UserError("--model and --endpoint contradict each other: choose one")
    classify, workers = _remote(options) if options.endpoint else _local(options)
    show = _shower(options, sys.stdout)
    done = failed = 0
    results = label(pictures_of(names, sys.stdin.buffer), classify, workers=workers)
    with _progress() as step, contextlib.closing(results):
        for result in results:
            done += 1
            failed += result.error is not None
            if result.error is not None and not options.json:
                print(f"{result.name}: {result.error}", file=sys.stderr)
            show(result)
            step(done, failed)
    if done > 1 and failed:
        print(f"{failed} of {done} could not be labelled", file=sys.stderr)
    return 1 if failed else 0


def pictures_of(names: Iterable[str], stdin: IO[bytes]) -> Iterator[Picture]:
    """Yield what the names stand for, one at a time: files, URLs, all pictures below a folder, matches of a pattern."""
    for name in names:
        path = Path(name)
        if name == "-":
            yield from _from_stdin(stdin)
        elif is_url(name) or path.is_file():
            yield Picture(name)
        elif path.is_dir():
            yield from _below(path)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
            yield from pictures_of(matches, stdin) if matches else [Picture(name, error="nothing matches")]
        else:
            yield Picture(name, error="no such file or folder")


def _from_stdin(stdin: IO[bytes]) -> Iterator[Picture]:
    head = stdin.peek(16)[:16] if hasattr(stdin, "peek") else b""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")) or head[6:10] == b"\0" * 4:
        yield Picture("stdin", stdin.read())
        return
    for line in stdin:
        if name := os.fsdecode(line.rstrip(b"\r\n")):
            yield from pictures_of([name] if name != "-" else [], stdin)


def _below(folder: Path) -> Iterator[Picture]:
    found = False
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                found = True
                yield Picture(str(Path(parent, file)))
    if not found:
        yield Picture(str(folder), error="no pictures in this folder")


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def label(pictures: Iterable[Picture], classify: Classify, *, workers: int) -> Generator[Result, None, None]:
    """Yield a result for every picture, in order; a bad one is a result too.

    ``workers`` pictures are worked on at once and a few more wait, so that memory does not grow with their number.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for picture in pictures:
                ahead.append(pool.submit(_label_one, picture, classify))
                if len(ahead) >= 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _label_one(picture: Picture, classify: Classify) -> Result:
    if picture.error is not None:
        return Result(picture.name, [], picture.error)
    try:
        predictions, version, unknown = classify(read(picture))
    except ImageError as error:
        return Result(picture.name, [], error.reason)
    except OSError as error:
        return Result(picture.name, [], error.strerror or str(error))
    return Result(picture.name, predictions, model_version=version, unknown=unknown)


def read(picture: Picture) -> bytes:
    """Return the bytes of a picture. Raises OSError."""
    if picture.data is not None:
        return picture.data
    if not is_url(picture.name):
        return Path(picture.name).read_bytes()
    from objrec.serving.client import download

    return download(picture.name)


def _local(options: argparse.Namespace) -> tuple[Classify, int]:
    from objrec.serving.predictor import Predictor, softmax
    from objrec.serving.runtimes import cores

    defaults = _defaults()
    model_dir = options.model or production_dir(options.registry or Path(defaults["registry_dir"]))
    workers = cores()
    predictor = Predictor.load(model_dir, threads=1, workers=workers, max_pixels=defaults["images"]["max_pixels"])
    top_k = options.top_k or defaults["serve"]["top_k"]
    if options.unknown and predictor.card.unknown is None:
        raise UserError(f"--unknown: {model_dir} has no threshold for unknown pictures: train it again")

    def classify(data: bytes) -> tuple[Ranked, str, bool]:
        logits = predictor.logits(predictor.pixels(data)[None])
        ranked = predictor.ranked(softmax(logits, predictor.card.temperature)[0], top_k)
        return ranked, predictor.card.sha256, options.unknown and bool(predictor.is_unknown(logits)[0])

    return classify, workers


def _remote(options: argparse.Namespace) -> tuple[Classify, int]:
    from objrec.serving.client import Endpoint

    endpoint = Endpoint(
        options.endpoint, key=options.key, top_k=options.top_k or _defaults()["serve"]["top_k"], unknown=options.unknown
    )
    return endpoint.classify, 4


def production_dir(registry_dir: Path) -> Path:
    """Return the folder of the model in production. Raises UserError when there is none."""
    from objrec.registry.store import FolderRegistry

    registry = FolderRegistry(registry_dir)
    record = registry.production()
    if record is None:
        raise UserError(
            f"no model in {registry.root} is in production: run python -m objrec.pipeline, or use --model DIR"
        )
    return registry.model_dir(record.sha256)


def _defaults() -> dict[str, Any]:
    """Return the default values, straight from their file: composing the configuration takes longer than a label."""
    import yaml

    from objrec.config.load import config_dir

    content: dict[str, Any] = yaml.safe_load((Path(config_dir()) / "config.yaml").read_text(encoding="utf-8"))
    return content


def _shower(options: argparse.Namespace, out: IO[str]) -> Callable[[Result], None]:
    """Return what prints a result, bad ones too where the format has a place for them."""
    if options.csv:
        return _csv_shower(options, out)

    def show(result: Result) -> None:
        if options.json:
            print(as_json(result), file=out, flush=True)
        elif result.error is None:
            words = "  ".join(f"{name} {100 * p:.1f} %" for name, p in result.predictions)
            print(f"{result.name}  {'unknown: ' if result.unknown else ''}{words}", file=out, flush=True)

    return show


def as_json(result: Result) -> str:
    """Return one line: what the endpoint answers, and the picture's name; or the name and an error."""
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


def _csv_shower(options: argparse.Namespace, out: IO[str]) -> Callable[[Result], None]:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "label", "probability", "others", "error"])

    def show(result: Result) -> None:
        best = result.predictions[0] if result.predictions else ("", "")
        others = " ".join(f"{name}:{p:.4f}" for name, p in result.predictions[1:])
        label = "" if result.unknown else best[0]
        writer.writerow([result.name, label, best[1], others, result.error or ("unknown" if result.unknown else "")])
        out.flush()

    return show


def _progress() -> Any:
    """Return a context whose value is told (done, failed); it shows a line where results do not go to the terminal."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return contextlib.nullcontext(lambda done, failed: None)
    return _Line()


class _Line:
    """A line on stderr that counts, at most ten times a second."""

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.completed} pictures"),
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
