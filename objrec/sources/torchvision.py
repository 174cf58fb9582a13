"""Data sets of torchvision, by name."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError, did_you_mean
from objrec.images.decode import ImageError
from objrec.sources.base import Candidate


class TorchvisionSource:
    """A LocalSource over ``torchvision.datasets.<dataset>``. torchvision is imported when one is made.

    Images that the data set keeps as files are passed on byte for byte, others are encoded as PNG, without loss.

    Args:
        dataset: such as CIFAR10, Flowers102, OxfordIIITPet; it must know its class names.
        root: its folder; downloads go there too.
        split: ``train``, ``test`` or what the data set calls its parts.
        download: let torchvision fetch it (by its own means: the limits of this program's downloads do not apply).

    Raises:
        UserError: there is no such data set, it is not there, or has no class names.
    """

    name = "torchvision"
    finite = True

    def __init__(self, *, dataset: str, root: str, split: str, download: bool) -> None:
        try:
            from torchvision import datasets
        except ImportError as error:
            raise UserError(f"source=torchvision: torchvision cannot be imported ({error})") from error
        kind = getattr(datasets, dataset, None)
        if kind is None or not inspect.isclass(kind):
            raise UserError(f"source.dataset={dataset}: no such data set.{did_you_mean(dataset, datasets.__all__)}")
        self._dataset_name, self._split = dataset, split
        takes = inspect.signature(kind).parameters
        arguments: dict[str, Any] = {"root": root}
        if "train" in takes:
            arguments["train"] = split == "train"
        elif "split" in takes:
            arguments["split"] = split
        if "download" in takes:
            arguments["download"] = download
        try:
            self._data: Any = kind(**arguments)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            cure = "" if download else " (source.download=true fetches it)"
            raise UserError(f"source.dataset={dataset}: cannot be opened{cure}: {str(error)[:300]}") from error
        names = getattr(self._data, "classes", None)
        if not names:
            raise UserError(f"source.dataset={dataset}: does not know the names of its classes")
        self._names = [str(n).replace("/", " or ") for n in names]
        self._places: dict[str, list[int]] = {n: [] for n in self._names}
        for place, label in enumerate(_labels(self._data)):
            self._places[self._names[int(label)]].append(place)

    def class_names(self) -> Sequence[str]:
        return self._names

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        for place in self._places[class_name]:
            yield Candidate(
                class_name=class_name, source=self.name, url=f"torchvision:{self._dataset_name}/{self._split}/{place}"
            )

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        place = int(candidate.url.rpartition("/")[2])
        if samples := getattr(self._data, "samples", None):
            data = Path(samples[place][0]).read_bytes()
        else:
            file = io.BytesIO()
            self._data[place][0].convert("RGB").save(file, "PNG")
            data = file.getvalue()
        if len(data) > max_bytes:
            raise ImageError("too_large", f"{len(data)} bytes, more than ingest.max_bytes={max_bytes}")
        return data


def _labels(data: Any) -> Sequence[int]:
    """Labels in order, without decoding where the data set has them apart."""
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(data, name, None)) is not None:
            return [int(x) for x in labels]
    return [int(data[i][1]) for i in range(len(data))]
