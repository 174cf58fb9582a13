"""A list of pictures: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from objrec.config.errors import UserError, did_you_mean
from objrec.sources.base import Candidate
from objrec.sources.licenses import code_of

NAMES: Final[Mapping[str, tuple[str, ...]]] = {  # what a column may be called
    "url": ("url", "image_url"),
    "class_name": ("class", "class_name", "label"),
    "license": ("license", "licence"),
    "license_url": ("license_url", "licence_url"),
    "creator": ("creator", "author"),
    "landing_page": ("landing_page", "page"),
    "title": ("title",),
    "attribution": ("attribution",),
}


class UrlsSource:
    """Pictures of a list with the columns ``url`` and ``class``; optional ones are in NAMES.

    Args:
        path: ends in .csv, .tsv, .jsonl or .parquet (which needs pyarrow).

    Raises:
        UserError: the list is not there, cannot be read, or lacks a column or a value.
    """

    name = "urls"
    finite = True

    def __init__(self, *, path: str | Path) -> None:
        self._path = Path(path)
        self._classes: dict[str, list[Candidate]] = {}
        try:
            for number, row in enumerate(_rows(self._path), start=1):
                candidate = self._candidate(row, number)
                self._classes.setdefault(candidate.class_name, []).append(candidate)
        except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
            raise UserError(f"source.path={path}: cannot be read: {error}") from error
        if not self._classes:
            raise UserError(f"source.path={path}: the list is empty")

    def class_names(self) -> Sequence[str]:
        return sorted(self._classes)

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        if class_name not in self._classes:
            nearest = did_you_mean(class_name, self._classes, what="it has")
            raise UserError(f"classes.names: '{class_name}' is not in {self._path}.{nearest}")
        yield from self._classes[class_name]

    def _candidate(self, row: Any, number: int) -> Candidate:
        if not isinstance(row, dict):
            raise UserError(f"source.path={self._path}: row {number} is no object")
        values: dict[str, Any] = {field: _first(row, names) for field, names in NAMES.items()}
        for field in ("url", "class_name"):
            if not values[field]:
                has = ", ".join(map(str, row)) or "none"
                raise UserError(f"source.path={self._path}: row {number} has no '{NAMES[field][0]}' (columns: {has})")
        values["license"] = code_of(values["license"]) or values["license"]
        name, url = str(values.pop("class_name")), str(values.pop("url"))
        if set(name) & set("/\\\0") or not name.strip("."):
            raise UserError(f"source.path={self._path}: row {number}: '{name}' cannot be the name of a folder")
        return Candidate(class_name=name, url=url, source=self.name, query=self._path.name, **values)


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    value = next((row[n] for n in names if row.get(n) not in (None, "")), None)
    return None if value is None else str(value).strip()


def _rows(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"source.path={path}: there is no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in reader:
                yield {str(k).strip().lower(): v for k, v in row.items() if k is not None}
    elif path.suffix in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    else:
        raise UserError(f"source.path={path}: should end in .csv, .tsv, .jsonl or .parquet")


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"source.path={path}: Parquet needs pyarrow: pip install pyarrow, or use CSV") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"source.path={path}: cannot be read: {error}") from error
