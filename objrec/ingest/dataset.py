"""The whole of ingest: sources, collection, files, manifest, report."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Config
from objrec.ingest.collect import Acquire, Collector, Demands, LocalAcquire, offers_of
from objrec.ingest.examiner import ExaminerPool
from objrec.ingest.progress import IngestProgress, asked, yield_table
from objrec.ingest.report import write_attribution, write_report
from objrec.ingest.selection import CandidateSelection, file_of, row_of
from objrec.ingest.store import WebStore
from objrec.ingest.web import Web, examiner_of
from objrec.sources.base import Candidate, LocalSource, Source
from objrec.sources.build import build_sources, nodes_of, uses_web
from objrec.system.cores import available_cores
from objrec.system.progress import note

Row = dict[str, Any]


def build(config: Config, source_path: Path | None, target: Path) -> None:
    """Build the data set in ``target``, an empty folder.

    Raises:
        UserError: a source cannot be used as configured, or a class ended without any image.
    """
    wanted = config.ingest.num_images
    with ExaminerPool(examiner_of(config, target)) as examiners:
        selection, class_names, notes, untaken = asyncio.run(_collect(config, source_path, target, examiners))
    _check(selection, class_names, config, notes)
    rows = list(selection.rows())
    with (target / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (*rows, *untaken))
    write_attribution(target / "ATTRIBUTION.md", rows)
    with ThreadPoolExecutor(available_cores()) as pool:
        write_report(target / "ingest_report.html", rows, class_names, wanted, notes, pool)
    _tell(selection, class_names, wanted)
    counts = Counter(row["status"] for row in untaken)
    if left := counts["not_taken"]:
        note(f"ingest: {left} of {left + len(rows)} files were not taken (ingest.num_images={wanted}; null takes all)")
    if strays := counts["stray"]:
        note(f"ingest: {strays} files in no class folder were passed over, see manifest.jsonl")


async def _collect(
    config: Config, source_path: Path | None, target: Path, examiners: ExaminerPool
) -> tuple[CandidateSelection, Sequence[str], list[str], list[Row]]:
    """Fill a selection and put the kept images in place.

    Returns:
        It, the classes, why anything ended early, and manifest rows of files that the sources have and it has not.
    """
    settings = config.ingest
    context: dict[str, Any] = {"seed": config.seed} | ({} if source_path is None else {"path": source_path})
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(available_cores()))
        web = await stack.enter_async_context(Web(config, examiners)) if uses_web(config.source) else None
        if web is not None:
            context |= {"api": web.api, "contact": settings.contact}
        sources = build_sources(config.source, **context)
        class_names = _class_names(config, sources)
        for name in class_names:
            (target / name).mkdir(exist_ok=True)
        selection = CandidateSelection(class_names, settings.num_images, distance=settings.near_duplicate_bits)
        progress = stack.enter_context(IngestProgress(selection, class_names, settings.num_images))
        notes: list[str] = []

        def stopped(source: str, reason: str) -> None:
            if (told := f"source {source} stopped: {reason}") not in notes:
                notes.append(told)
                progress.note(f"ingest: {told}")

        ways = list(_ways(sources, _demands(config, sources), web, examiners, threads))
        offers = {name: offers_of(name, ways, stopped) for name in class_names}
        collector = Collector(selection, offers, class_timeout=settings.class_timeout, progress=progress)
        for name in sorted(await collector.run()):
            stopped_at = f"class {name} stopped: ingest.class_timeout={settings.class_timeout:g} s is over"
            notes.append(stopped_at)
            progress.note(f"ingest: {stopped_at}")
        if web is not None:
            await web.settle()
        await examiners.close()  # a class that ended early may have left an image being written
        _place(selection, target, web.store if web else None)
    return selection, class_names, notes, [*_untaken(selection, class_names, sources), *_strays(sources)]


def _untaken(selection: CandidateSelection, class_names: Sequence[str], sources: Sequence[Source]) -> Iterator[Row]:
    """Yield a row for each candidate of a source with an end that was not looked at."""
    seen = {(o.candidate.class_name, o.candidate.url) for o, _ in selection.outcomes()}
    for source in sources:
        if getattr(source, "finite", False):
            for name in (n for n in class_names if n in (source.class_names() or ())):
                reason = "ingest.class_timeout was over" if selection.missing(name) else "ingest.num_images was reached"
                for candidate in source.candidates(name):
                    if (name, candidate.url) not in seen:
                        yield row_of(candidate, None, "not_taken", reason)


def _strays(sources: Sequence[Source]) -> Iterator[Row]:
    for source in sources:
        for name, reason in getattr(source, "strays", ()):
            yield row_of(Candidate(class_name="", source=source.name, url=f"file:{name}"), None, "stray", reason)


def _ways(
    sources: Sequence[Source], demands: Demands, web: Web | None, examiners: ExaminerPool, threads: Executor
) -> Iterator[tuple[Source, Acquire]]:
    """Pair each source with what gets its images."""
    for source in sources:
        if isinstance(source, LocalSource):
            yield source, LocalAcquire(source, demands, examiners, threads)
        else:
            assert web is not None
            yield web.remembering(source), web.acquire(demands)


def _demands(config: Config, sources: Sequence[Source]) -> Demands:
    nodes = nodes_of(config.source)
    return Demands(
        max_pixels=config.images.max_pixels,
        min_size=config.ingest.min_size,
        max_bytes=config.ingest.max_bytes,
        excluded=frozenset(config.ingest.exclude),
        licenses={s.name: n.licenses for s, n in zip(sources, nodes, strict=True)},
    )


def _class_names(config: Config, sources: Sequence[Source]) -> Sequence[str]:
    """Return the classes to fill. Raises UserError where no source has what was asked for."""
    known = [s.class_names() for s in sources]
    has = None if any(k is None for k in known) else sorted({n for k in known for n in k or ()})
    asked = config.classes.names
    if asked is None:
        named = sorted({n for k in known for n in k or ()})
        if len(named) < 2:
            found = f" (it has '{named[0]}' alone)" if named else ""
            raise UserError(
                f"classes.names: source={sources[0].name} needs class names{found}: classes.names=[cat,dog]"
            )
        return named
    if has is not None and (absent := [n for n in asked if n not in has]):
        raise UserError(
            [f"classes.names: the source has no '{n}'.{did_you_mean(n, has, what='it has')}" for n in absent]
        )
    return asked


def _place(selection: CandidateSelection, target: Path, store: WebStore | None) -> None:
    """Put kept images of the store in place, and remove what local sources wrote and is not kept."""
    kept = set()
    for outcome, is_kept in selection.outcomes():
        if is_kept and outcome.image is not None:
            kept.add(name := file_of(outcome.candidate.class_name, outcome.image))
            if store is not None and not (target / name).exists():
                store.place(outcome.image.sha256, target / name)
    for folder in [p for p in target.iterdir() if p.is_dir()]:
        for entry in os.scandir(folder):
            if f"{folder.name}/{entry.name}" not in kept:
                Path(entry.path).unlink()


def _check(selection: CandidateSelection, class_names: Sequence[str], config: Config, notes: Sequence[str]) -> None:
    """Raise UserError for each class that ended without any image."""
    problems = []
    for name in class_names:
        counts = Counter(selection.statuses(name))
        if not counts["kept"]:
            found = ", ".join(f"{n} {status}" for status, n in counts.most_common()) or "nothing was found"
            cure = f" Smaller ones are taken with ingest.min_size={config.ingest.min_size // 2}." * bool(
                counts["too_small"]
            )
            cure += " source.licenses=null takes any licence." * bool(counts["license"])
            problems.append(f"class '{name}': no usable image ({found}).{cure}")
    if problems:
        raise UserError([*notes, *problems])


def _tell(selection: CandidateSelection, class_names: Sequence[str], wanted: int | None) -> None:
    """Say on the terminal what was kept; the table only where there is more to say than that all went well."""
    statuses: Mapping[str, Mapping[str, int]] = {name: selection.statuses(name) for name in class_names}
    kept = sum(c.get("kept", 0) for c in statuses.values())
    note(f"ingest: {kept} images kept, {asked(wanted)} asked for in each of {len(class_names)} classes")
    if any(set(c) != {"kept"} or c["kept"] < (wanted or 0) for c in statuses.values()):
        note(yield_table(statuses, wanted))
