"""What the names given to ``predict.py`` stand for, and the bytes behind them."""

from __future__ import annotations

import glob
import io
import itertools
import os
import select
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

from objrec.config.errors import UserError

MAX_BYTES = 50_000_000  # of an image
MAX_NAME = 65_536  # bytes of a line on stdin
PATIENCE = 5  # seconds in which somebody should open the other end of a pipe
HEAD = 16  # bytes that tell an image from names
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """Something to label: a name for people, and where its bytes are.

    Attributes:
        error: why it is known to be none.
        pipe: the file may be a pipe, which is waited for.
    """

    name: str
    data: bytes | None = None
    error: str | None = None
    pipe: bool = False


def images_of(names: Iterable[str], stdin: TextIO | None, *, null: bool = False) -> Iterator[ImageInput]:
    """Yield what the names stand for, one at a time: files, URLs, all images below a folder, matches of a pattern.

    Args:
        stdin: what the name ``-`` reads; None where it is closed.
        null: names there end with a zero byte instead of a line break.
    """
    for name in names:
        if name != "-":
            yield from _named(name, pipe=True)
        elif stdin is None:
            yield ImageInput("stdin", error="is closed")
        else:
            try:
                yield from _from_stdin(stdin.buffer, null=null)
            except OSError as error:
                yield ImageInput("stdin", error=reason_of(error))


def _named(name: str, *, pipe: bool) -> Iterator[ImageInput]:
    path = Path(name)
    try:
        if is_url(name):
            yield ImageInput(name)
        elif path.is_dir():
            yield from _below(path)
        elif path.exists():
            yield ImageInput(name, pipe=pipe)
        elif glob.has_magic(name):
            yield from _matches(name)
        else:
            yield ImageInput(name, error="no such file or folder")
    except (OSError, ValueError) as error:  # too long, not to be entered, or with a zero byte
        yield ImageInput(name, error=reason_of(error))


def _matches(pattern: str) -> Iterator[ImageInput]:
    """Yield what matches, nothing twice: ``**`` matches a folder, the folders in it, and their files as well."""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    seen: set[object] = set()
    for match in matches:
        target = os.path.realpath(match)  # ** goes through links to folders, in circles too
        if not os.path.isdir(target):  # noqa: PTH112  # Path.is_dir raises where it may not look
            found: Iterable[ImageInput] = [ImageInput(match)]
        else:
            found = [] if target in seen else _below(Path(match))
            seen.add(target)
        for image in found:
            parent, file = os.path.split(image.name)
            key = (os.path.realpath(parent), file)
            if key not in seen:
                seen.add(key)
                yield image
    if not matches:
        yield ImageInput(pattern, error="nothing matches")


def _from_stdin(stdin: IO[bytes], *, null: bool = False) -> Iterator[ImageInput]:
    if null:
        yield from _separated(stdin)
        return
    head = stdin.read(HEAD)  # waits for all of them, however small the pieces in which they come
    if head.startswith(STARTS) or head[6:10] == b"\0" * 4:
        yield ImageInput("stdin", _at_most(MAX_BYTES, stdin, head))
        return
    rest = iter(lambda: stdin.readline(MAX_NAME), b"")
    for line in itertools.chain((head + stdin.readline(MAX_NAME)).split(b"\n"), rest):
        if len(line) >= MAX_NAME:
            yield ImageInput("stdin", error=f"neither an image nor names: a line of {MAX_NAME} bytes or more")
            return
        name = os.fsdecode(line.rstrip(b"\r\n"))
        if name and name != "-":
            yield from _named(name, pipe=False)


def _separated(stdin: IO[bytes]) -> Iterator[ImageInput]:
    """Yield what names that end with a zero byte stand for, as they come."""
    rest = b""
    while piece := cast(io.BufferedReader, stdin).read1(MAX_NAME):
        *names, rest = (rest + piece).split(b"\0")
        for name in filter(None, names):
            yield from _named(os.fsdecode(name), pipe=False)
        if len(rest) >= MAX_NAME:
            yield ImageInput("stdin", error=f"no names that end with a zero byte: {MAX_NAME} bytes or more without one")
            return
    if rest:
        yield from _named(os.fsdecode(rest), pipe=False)


def _below(folder: Path) -> Iterator[ImageInput]:
    found = False
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if not _passed_over(path, folder):
                found = True
                yield ImageInput(str(path))
    for error in errors:
        yield ImageInput(str(error.filename), error=reason_of(error))
    if not found and not errors:
        yield ImageInput(str(folder), error="no images in this folder")


def _passed_over(path: Path, folder: Path) -> bool:
    """Whether a file is no image of a folder, by the rule for all folders; one that cannot be read is said later."""
    from objrec.images.image_folder import not_an_image
    from objrec.system.reading import read_file

    def head() -> bytes:
        return read_file(path, 32) if path.is_file() else b""  # opening a pipe would wait for ever

    try:
        return bool(not_an_image(f"x/{path.relative_to(folder)}", head))
    except UserError:
        return False


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def reason_of(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def read(image: ImageInput) -> bytes:
    """Return the bytes of an image. Raises OSError, also for what is no file, or is larger than ``MAX_BYTES``."""
    if image.data is not None:
        return image.data
    if not is_url(image.name):
        return _read_file(image.name, pipe=image.pipe)
    from objrec.client.endpoint import download

    return download(image.name, max_bytes=MAX_BYTES)


def _read_file(name: str, *, pipe: bool) -> bytes:
    # to open a pipe that nobody writes to would block
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if pipe and stat.S_ISFIFO(status.st_mode):
            return _at_most(MAX_BYTES, file, _first_of_pipe(descriptor))
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES} bytes")
        return _at_most(MAX_BYTES, file)


def _first_of_pipe(descriptor: int) -> bytes:
    """Return the first byte, or none yet where a writer takes its time. Raises OSError where there is no writer."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    came = poll.poll(1000 * PATIENCE)
    try:
        first = os.read(descriptor, 1)
    except BlockingIOError:
        first = b""
    else:
        if not came and not first:
            raise OSError(f"a pipe that nobody wrote to for {PATIENCE} s")
    os.set_blocking(descriptor, True)
    return first


def _at_most(limit: int, file: IO[bytes], head: bytes = b"") -> bytes:
    data = head + file.read(limit + 1 - len(head))
    if len(data) > limit:
        raise OSError(f"larger than {limit} bytes")
    return data
