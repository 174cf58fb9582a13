"""The first step: from class names to a data set with a row of provenance for every candidate."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Config
from objrec.pipeline.step import Port, make_step
from objrec.sources.base import LocalSource, Source


@make_step(
    name="ingest",
    inputs=(Port(name="source_dir", optional=True, config="source.path"),),
    outputs=(Port(name="raw_data_dir"),),
    reads=("seed", "classes", "source", "ingest", "images"),
    libraries=("pillow", "numpy"),
)
def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Build a data set for the class names from a source."""
    from objrec.ingest import local
    from objrec.ingest.selection import Selection
    from objrec.sources.build import build_source

    context: dict[str, Any] = {"seed": config.seed}
    if "source_dir" in inputs:
        context["path"] = inputs["source_dir"]
    source = build_source(config.source, **context)
    assert isinstance(source, LocalSource)
    class_names = _class_names(config, source)
    target = outputs["raw_data_dir"]
    selection = Selection(class_names, config.ingest.num_images)
    local.collect(
        source,
        selection,
        class_names,
        target,
        max_pixels=config.images.max_pixels,
        min_size=config.ingest.min_size,
        max_bytes=config.ingest.max_bytes,
    )
    rows = list(selection.rows())
    _check(rows, class_names, config)
    _remove_others(target, rows)
    write_manifest(target / "manifest.jsonl", rows)
    _report(rows, class_names, config.ingest.num_images)


STEP = run


def _class_names(config: Config, source: Source) -> Sequence[str]:
    """Return the classes to fill. Raises UserError where the source has not what was asked for."""
    has, asked = source.class_names(), config.classes.names
    if asked is None:
        if has is None:
            raise UserError(f"classes.names: source={source.name} needs class names: classes.names=[cat,dog]")
        return has
    if has is not None and (absent := [n for n in asked if n not in has]):
        raise UserError(
            [f"classes.names: the source has no '{n}'.{did_you_mean(n, has, what='it has')}" for n in absent]
        )
    return asked


def _check(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str], config: Config) -> None:
    """Raise UserError for each class that ended without any picture."""
    problems = []
    for name in class_names:
        counts = Counter(r["status"] for r in rows if r["class"] == name)
        if not counts["kept"]:
            found = ", ".join(f"{n} {status}" for status, n in counts.most_common()) or "nothing was found"
            cure = f" Smaller ones are taken with ingest.min_size={config.ingest.min_size // 2}." * bool(
                counts["too_small"]
            )
            problems.append(f"class '{name}': no usable picture ({found}).{cure}")
    if problems:
        raise UserError(problems)


def _remove_others(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remove pictures that were written and then not kept."""
    kept = {r["file"] for r in rows}
    for name in {r["class"] for r in rows}:
        for entry in os.scandir(target / name):
            if f"{name}/{entry.name}" not in kept:
                Path(entry.path).unlink()


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _report(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str], wanted: int) -> None:
    counts = {name: Counter(r["status"] for r in rows if r["class"] == name) for name in class_names}
    kept = sum(c["kept"] for c in counts.values())
    print(f"ingest: {kept} pictures in {len(class_names)} classes kept", file=sys.stderr)
    for name, count in counts.items():
        if count["kept"] < wanted:
            rest = ", ".join(f"{n} {status}" for status, n in count.most_common() if status != "kept")
            also = f" ({rest})" if rest else ""
            print(
                f"ingest: {name}: {count['kept']} of {wanted} asked for, the source has no more{also}", file=sys.stderr
            )


if __name__ == "__main__":
    from objrec.pipeline.command import main

    main(STEP)
