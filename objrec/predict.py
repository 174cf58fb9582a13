"""``python predict.py``: label pictures with a model folder, the model in production, or an endpoint."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrec.config.cli import guard
from objrec.config.errors import UserError
from objrec.images.decode import SUFFIXES, ImageError

MAX_BYTES = 50_000_000  # of a picture from the web
SECONDS = 30.0

Ranked = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one picture: ``predictions``, best first, or an ``error``."""

    name: str
    predictions: Ranked
    error: str | None = None
    model_version: str | None = None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="predict.py", description="Label pictures.")
    p.add_argument("pictures", nargs="*", metavar="IMAGE|FOLDER|URL", help="what to label")
    p.add_argument(
        "--image_url", "--image-url", action="append", default=[], metavar="URL", help="another way to name a URL"
    )
    p.add_argument("--model", type=Path, metavar="DIR", help="a model folder (default: the model in production)")
    p.add_argument("--endpoint", metavar="URL", help="ask this endpoint instead of a local model")
    p.add_argument("--registry", type=Path, metavar="DIR", help="the registry with the model in production")
    p.add_argument("--key", help="the endpoint's key")
    p.add_argument("--top-k", "--top_k", type=int, default=5, metavar="K", help="labels for each picture (default: 5)")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return guard(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    names = [*options.pictures, *options.image_url]
    if not names:
        raise UserError("name a picture, a folder or a URL: python predict.py PICTURE")
    if options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: should be at least 1")
    classify = _remote(options) if options.endpoint else _local(options)
    failed = 0
    for result in label(pictures_of(names), classify):
        failed += result.error is not None
        show(result, as_json=options.json)
    return 1 if failed else 0


def pictures_of(names: Iterable[str]) -> Iterator[str]:
    """Yield picture files and URLs; a folder means all below it. Raises UserError for what is not there."""
    for name in names:
        path = Path(name)
        if is_url(name) or path.is_file():
            yield name
        elif path.is_dir():
            yield from (str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            raise UserError(f"{name}: no such file or folder")


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def label(names: Iterable[str], classify: Callable[[bytes], tuple[Ranked, str]]) -> Iterator[Result]:
    """Yield a result for every picture, in order; a bad one is a result too."""
    for name in names:
        try:
            predictions, version = classify(read(name))
            yield Result(name, predictions, model_version=version)
        except ImageError as error:
            yield Result(name, [], error.reason)
        except OSError as error:
            yield Result(name, [], str(error))


def read(name: str) -> bytes:
    """Return the bytes of a file or URL. Raises OSError."""
    if not is_url(name):
        return Path(name).read_bytes()
    request = urllib.request.Request(name, headers={"User-Agent": "objrec-predict", "Accept": "image/*"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        data: bytes = response.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES} bytes")
    return data


def _local(options: argparse.Namespace) -> Callable[[bytes], tuple[Ranked, str]]:
    from objrec.serving.predictor import Predictor

    predictor = Predictor.load(options.model or production_dir(options.registry))
    return lambda data: (predictor.predict([data], top_k=options.top_k)[0], predictor.card.sha256)


def production_dir(registry_dir: Path | None) -> Path:
    """Return the folder of the model in production. Raises UserError when there is none."""
    from objrec.registry.store import FolderRegistry

    registry = FolderRegistry(registry_dir or default_registry())
    record = registry.production()
    if record is None:
        raise UserError(
            f"no model in {registry.root} is in production: run python -m objrec.pipeline, or give --model DIR"
        )
    return registry.model_dir(record.sha256)


def default_registry() -> Path:
    import yaml

    from objrec.config.load import config_dir

    return Path(yaml.safe_load((Path(config_dir()) / "config.yaml").read_text(encoding="utf-8"))["registry_dir"])


def _remote(options: argparse.Namespace) -> Callable[[bytes], tuple[Ranked, str]]:
    url = options.endpoint.rstrip("/")
    url = url if url.endswith("/score") else f"{url}/score"
    headers = {"Content-Type": "application/octet-stream"}
    if options.key:
        headers["Authorization"] = f"Bearer {options.key}"  # as Azure wants it; ours takes it too

    def classify(data: bytes) -> tuple[Ranked, str]:
        request = urllib.request.Request(f"{url}?top_k={options.top_k}", data=data, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ImageError("corrupt", f"{error.code}: {_reason(error)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{url} does not answer as an endpoint does: {error}") from None
        return [(p["label"], p["probability"]) for p in answer["predictions"]], answer["model_version"]

    return classify


def _reason(error: urllib.error.HTTPError) -> Any:
    try:
        return json.load(error).get("reason", error.reason)
    except ValueError:
        return error.reason


def show(result: Result, *, as_json: bool) -> None:
    if as_json:
        content: dict[str, Any] = {"image": result.name}
        if result.error is not None:
            content["error"] = result.error
        else:
            label, probability = result.predictions[0]
            content |= {
                "label": label,
                "probability": probability,
                "predictions": [{"label": name, "probability": p} for name, p in result.predictions],
                "model_version": result.model_version,
            }
        print(json.dumps(content), flush=True)
    elif result.error is not None:
        print(f"{result.name}: {result.error}", file=sys.stderr)
    else:
        print(f"{result.name}  {'  '.join(f'{name} {100 * p:.1f} %' for name, p in result.predictions)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
