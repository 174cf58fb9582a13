"""A list of images: CSV, JSON lines or Parquet."""

from __future__ import annotations

import codecs
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from objrec.config.errors import UserError, did_you_mean
from objrec.sources.base import Candidate, load_json
from objrec.sources.licenses import code_of

MAX_NAME: Final = 200  # bytes of a class name, which becomes a folder
WINDOWS: Final = "objrec.windows"  # how bytes are read that are no UTF-8
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
    """Images of a list with the columns ``url`` and ``class``; optional ones are in NAMES.

    A row without URL becomes a candidate with a problem; one without a class is left out and named on stderr.

    Args:
        path: ends in .csv, .tsv, .jsonl or .parquet (which needs pyarrow). Text is UTF-8, Windows-1252, or UTF-16
            with a byte order mark; the columns of a table are separated by commas, semicolons or tabs, whichever its
            first line has most of.

    Raises:
        UserError: the list is not there, cannot be read, lacks a column, or has no usable row.
    """

    name = "urls"
    finite = True

    def __init__(self, *, path: str | Path) -> None:
        self._path = Path(path)
        self._classes: dict[str, list[Candidate]] = {}
        lost: list[str] = []
        try:
            for number, row in enumerate(_rows(self._path), start=1):
                try:
                    candidate = self._candidate(row, number)
                except _BadRow as bad:
                    lost.append(f"row {number} {bad}")
                else:
                    self._classes.setdefault(candidate.class_name, []).append(candidate)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"source.path={path}: cannot be read: {error}") from error
        for name in [n for n, found in self._classes.items() if all(c.problem for c in found)]:
            lost += [f"{c.url.partition('#')[2]} {c.problem}" for c in self._classes.pop(name)]
        if not self._classes:
            raise UserError(f"source.path={path}: " + (_few(lost) if lost else "the list is empty"))
        if lost:
            print(f"source.path={path}: {len(lost)} rows are left out: {_few(lost)}", file=sys.stderr)

    def class_names(self) -> Sequence[str]:
        return sorted(self._classes)

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        if class_name not in self._classes:
            nearest = did_you_mean(class_name, self._classes, what="it has")
            raise UserError(f"classes.names: '{class_name}' is not in {self._path}.{nearest}")
        yield from self._classes[class_name]

    def _candidate(self, row: Any, number: int) -> Candidate:
        """Return what a row offers. Raises _BadRow where it names no class, with the rest of a sentence."""
        if isinstance(row, Exception):
            raise _BadRow(f"cannot be read: {row}")
        if not isinstance(row, dict):
            raise _BadRow("is no object")
        row = {str(k).strip().lower(): v for k, v in row.items() if k is not None}
        values: dict[str, Any] = {field: _first(row, names) for field, names in NAMES.items()}
        name, url = values.pop("class_name"), values.pop("url")
        columns = f"(columns: {', '.join(row) or 'none'})"
        if not name:
            raise _BadRow(f"has no 'class' {columns}")
        if set(name) & set("/\\\0") or not name.strip(".") or len(name.encode(errors="replace")) > MAX_NAME:
            raise _BadRow(f"has the class '{name[:100]}', which cannot be the name of a folder")
        values["license"] = code_of(values["license"]) or values["license"]
        if not url:
            values["problem"] = f"has no 'url' {columns}"
        return Candidate(
            class_name=name,
            url=url or f"{self._path.name}#row {number}",
            source=self.name,
            query=self._path.name,
            **values,
        )


class _BadRow(Exception):
    """A row that names no class."""


def _few(bad: Sequence[str]) -> str:
    return "; ".join(bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    value = next((row[n] for n in names if row.get(n) not in (None, "")), None)
    return None if value is None else str(value).strip()


def _rows(path: Path) -> Iterator[Any]:
    """Yield rows as dictionaries; in the place of one that cannot be read, the error."""
    if not path.is_file():
        raise UserError(f"source.path={path}: there is no such file")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in (".csv", ".tsv"):
        with path.open(newline="", encoding=_encoding(path), errors=WINDOWS) as file:
            yield from _table(file, "\t,;" if suffix == ".tsv" else ",;\t")
    elif suffix in (".jsonl", ".ndjson"):
        with path.open(encoding=_encoding(path), errors=WINDOWS) as file:
            yield from (_parsed(line) for line in file if line.strip())
    else:
        raise UserError(f"source.path={path}: should end in .csv, .tsv, .jsonl or .parquet")


def _table(file: TextIO, separators: str) -> Iterator[Any]:
    """Rows of a table whose separator shows in its first line, or is named there as Excel does: ``sep=;``."""
    head = file.readline()
    separator = max(separators, key=head.count)
    if head.lower().startswith("sep=") and head[4:5] not in ("", "\r", "\n"):
        separator = head[4]
    else:
        file.seek(0)
    rows = csv.DictReader(file, delimiter=separator)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    """Read what is no UTF-8 as Excel writes a plain CSV."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error(WINDOWS, _as_windows)


def _encoding(path: Path) -> str:
    """UTF-16 by its byte order mark, which Excel writes with 'Unicode text'; else UTF-8 with one or without."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _parsed(line: str) -> Any:
    try:
        return load_json(line)
    except ValueError as error:
        return ValueError(str(error)[:200])


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
