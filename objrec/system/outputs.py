"""May this path be written? One answer for every command: what objrec did not write is neither replaced nor deleted.

Ours is what our own record lists. A result that is written once (a split, a model, a report, a file) has its record
beside it, ``.<name>.objrec.json``; a folder that grows (a run, a cache, a registry) has a mark inside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from objrec.config.errors import UserError
from objrec.system.files import file_sha256, write_json

Kind = Literal["folder", "file"]
Row = tuple[int, int, str]  # size in bytes, mtime in ns, sha256
MARK = ".objrec.json"
CURE = "choose another path, or move it away"
NAMED = 3  # files that a message names


def check(outputs: Mapping[str, tuple[Path, Kind]], inputs: Mapping[str, Path]) -> list[str]:
    """Return what stands against writing ``outputs``, a line each; nothing is touched.

    Args:
        outputs: setting -> (path, kind).
        inputs: setting -> path; no output may be one of them, inside one, or around one.
    """
    problems = [p for name, (path, kind) in outputs.items() if (p := _objection(name, path, kind))]
    for name, (path, _) in outputs.items():
        for other, given in inputs.items():
            if how := _overlap(path, given):
                problems.append(f"{name}={path}: is {how} the input {other}={given}: choose another place")
    places = list(outputs.items())
    for index, (name, (path, _)) in enumerate(places):
        for other, (second, _) in places[:index]:
            if how := _overlap(path, second):
                problems.append(f"{name}={path}: is {how} the output {other}={second}: choose another place")
    return problems


def refuse_inside(folders: Mapping[str, str | Path], inputs: Mapping[str, Path]) -> None:
    """Raise UserError where a folder that objrec fills, such as its cache, is an input or inside one."""
    problems = [
        f"{name}={folder}: is {how} the input {other}={given}: name another place with {name}=DIR"
        for name, folder in folders.items()
        for other, given in inputs.items()
        if (how := _overlap(Path(folder), given)) and how != "around"
    ]
    if problems:
        raise UserError(problems)


@contextmanager
def placed(name: str, path: Path, kind: Kind, *, resumes: bool = False, ours: bool = False) -> Iterator[Path]:
    """Yield where to write an output; move it to ``path`` and record it when the block ends well.

    A folder is built in ``<name>.partial``. After a UserError nothing of it stays. A mount is written directly, since
    it cannot be renamed, and so is the folder in which this process works.

    Args:
        name: the setting, for messages.
        resumes: an unfinished ``<name>.partial`` of ours is kept for the next try.
        ours: the place belongs to a store of ours, which looks after it and keeps its own records.

    Raises:
        UserError: what is there was not written by objrec.
    """
    final = _real(path)
    if not ours and (problem := _objection(name, path, kind)):
        raise UserError(problem)
    final.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder" and final.is_dir() and _is_fixed(final):
        if in_a_job():
            mark(final)
        yield final
    elif kind == "folder":
        yield from _folder(name, final, resumes=resumes, ours=ours)
    else:
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            yield scratch / final.name
            if not ours and (problem := _objection(name, path, kind)):
                raise UserError(problem)
            (scratch / final.name).replace(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if not ours and not in_a_job():
        _record(final)


def claim(folder: Path, name: str, is_ours: Callable[[Path], bool] = lambda folder: False) -> None:
    """Make ``folder`` a folder that objrec fills, or see that it is one already.

    Args:
        name: the setting, for the message.
        is_ours: recognises one that an earlier version filled, before there were marks.

    Raises:
        UserError: it holds files and objrec did not make it.
    """
    if folder.is_dir():
        if (folder / MARK).exists():
            return
        if not (_is_empty(folder) or is_ours(folder)):
            raise UserError(f"{name}={folder}: holds files, and objrec did not make it: {CURE}")
    elif os.path.lexists(folder) and not folder.is_symlink():
        raise UserError(f"{name}={folder}: is a file, and a folder is needed: {CURE}")
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder)


def claim_cache(root: Path) -> None:
    """Make ``root`` a cache of ours, or see that it is one. Raises UserError for another folder that holds files."""
    claim(root, "cache_dir", _is_cache)


def _is_cache(root: Path) -> bool:
    """Whether an earlier version filled this folder, before there were marks."""
    locks = root / "locks"
    return locks.is_dir() and any(re.fullmatch(r"\w+-[0-9a-f]{32}", p.name) for p in locks.iterdir())


def mark(folder: Path) -> None:
    """Write the mark of a folder of ours."""
    with suppress(FileExistsError), (folder / MARK).open("x") as file:
        file.write('{"written_by": "objrec"}\n')


def _objection(name: str, path: Path, kind: Kind) -> str | None:
    """Return why ``path`` may not be replaced, or None."""
    final = _real(path)
    if kind == "folder" and not _is_fixed(final) and _foreign_partial(final):
        return f"{name}={path}: {_partial(final)} exists and was not written by objrec: {CURE}"
    if not os.path.lexists(final):
        return None
    if final.is_dir() != (kind == "folder"):
        found = "folder" if final.is_dir() else "file"
        return f"{name}={path}: is a {found}, and a {kind} is to be written there: {CURE}"
    if (kind == "folder" and _is_empty(final)) or (in_a_job() and _fresh_in_a_job(final)):
        return None
    rows = _recorded(final)
    if rows is None:
        what = "is not empty" if kind == "folder" else "exists"
        return f"{name}={path}: {what}, and objrec did not write it: {CURE}"
    if foreign := [n for n, place in files_in(final) if not _unchanged(place, rows.get(n))]:
        shown = ", ".join(foreign[:NAMED]) + (f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else "")
        what = f"holds {shown}, which objrec did not write" if kind == "folder" else "was changed since objrec wrote it"
        return f"{name}={path}: {what}: {CURE}"
    return None


def _folder(name: str, final: Path, *, resumes: bool, ours: bool) -> Iterator[Path]:
    beside = _partial(final)
    if beside.exists() and not resumes:
        shutil.rmtree(beside)
    if not beside.exists():
        beside.mkdir()
        _note(beside).write_text(json.dumps({"written_by": "objrec", "inode": beside.stat().st_ino}) + "\n")
    try:
        yield beside
    except UserError:
        if not resumes or _is_empty(beside):  # what was trained so far is the user's; nothing else stays behind
            shutil.rmtree(beside, ignore_errors=True)
            _note(beside).unlink(missing_ok=True)
        raise
    if not ours and (problem := _objection(name, final, "folder")):  # put there in the meantime
        raise UserError(f"{problem}; the result is in {beside}")
    if final.exists() and not _is_empty(final):
        trash = Path(tempfile.mkdtemp(prefix=f".{final.name}.old", dir=final.parent))
        final.rename(trash / final.name)
        beside.rename(final)
        shutil.rmtree(trash, ignore_errors=True)
    else:
        beside.rename(final)
    _note(beside).unlink(missing_ok=True)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _partial(final: Path) -> Path:
    return final.parent / f"{final.name}.partial"


def _note(path: Path) -> Path:
    """Where the record of a file or folder is."""
    return path.parent / f".{path.name}.objrec.json"


def _foreign_partial(final: Path) -> bool:
    """Whether something stands where an unfinished folder of ours would be; ours is known by its inode."""
    beside = _partial(final)
    if not os.path.lexists(beside):
        return False
    note = _read(_note(beside))
    return note is None or beside.is_symlink() or note.get("inode") != beside.stat().st_ino


def _is_fixed(final: Path) -> bool:
    """Whether a folder must be written directly."""
    if not final.is_dir():
        return False
    here = Path.cwd()
    return (
        in_a_job() or os.path.ismount(final) or final in (here, *here.parents) or not os.access(final.parent, os.W_OK)
    )


def in_a_job() -> bool:
    """Whether this process is a step of a job on Azure Machine Learning."""
    return "AZUREML_RUN_ID" in os.environ


def _fresh_in_a_job(final: Path) -> bool:
    """Whether the platform made a job's output, or another process of the same job began to fill it."""
    return (final / MARK).exists() if final.is_dir() else final.stat().st_size == 0


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _overlap(path: Path, other: Path) -> str:
    """Say how ``path`` relates to ``other``: "the same as", "inside", "around" or nothing."""
    ours, theirs = _real(path), _real(other)
    if _same(ours, theirs):
        return "the same as"
    if any(_same(parent, theirs) for parent in ours.parents):
        return "inside"
    return "around" if any(_same(parent, ours) for parent in theirs.parents) else ""


def _same(a: Path, b: Path) -> bool:
    """Whether two paths are one place, by name or, as where case does not count, by identity."""
    if a == b:
        return True
    with suppress(OSError):
        return a.name.casefold() == b.name.casefold() and a.samefile(b)
    return False


def _record(final: Path) -> None:
    """Write down what was written, so that a later run may replace it. Without room for that it may not."""
    rows = {name: _row(place) for name, place in files_in(final)}
    with suppress(OSError):
        write_json(_note(final), {"written_by": "objrec", "files": rows})


def _recorded(final: Path) -> dict[str, Any] | None:
    found = _read(_note(final)) if final.name else None
    files = found.get("files") if found is not None else None
    return files if isinstance(files, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("written_by") == "objrec" else None


def files_in(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield what is no folder under ``path`` (a file: itself, named ""); links are not followed."""
    if not path.is_dir():
        yield "", path
        return
    for folder, folders, files in os.walk(path):
        for name in [*files, *(f for f in folders if Path(folder, f).is_symlink())]:
            yield str(Path(folder, name).relative_to(path)), Path(folder, name)


def _row(path: Path) -> Row:
    stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns, file_sha256(path)


def _unchanged(path: Path, row: Sequence[Any] | None) -> bool:
    if row is None or path.is_symlink() or not path.is_file():
        return False
    stat = path.stat()
    return bool(stat.st_size == row[0] and (stat.st_mtime_ns == row[1] or file_sha256(path) == row[2]))
