"""What a running service needs to know, as plain data that travels to another process."""

from __future__ import annotations

import hashlib
from typing import Self

from objrec.config.schema import Config, Serve
from objrec.serving.keys import read_keys

LOADING = "the model is being loaded"  # what /readyz answers until there is a model or a reason why not
NOT_COMPARED = {"action", "key_file", "max_accuracy_drop"}  # how it was started, and what deployment alone reads


class ServiceSettings(Serve):
    """The ``serve`` section and what surrounds it. ``keys`` are secrets: they travel over a pipe."""

    registry_dir: str
    model_dir: str | None = None  # serve this folder, whatever the registry says
    keys: list[str]
    allow_private_addresses: bool
    contact: str | None

    @property
    def digest(self) -> str:
        """A short hash that differs where a running service would have to be started again."""
        return hashlib.sha256(self.model_dump_json(exclude=NOT_COMPARED).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, config: Config, *, registry_dir: str, model_dir: str | None = None) -> Self:
        """Collect the settings. Raises UserError for keys that cannot be read."""
        return cls(
            **config.serve.model_dump(),
            registry_dir=registry_dir,
            model_dir=model_dir,
            keys=read_keys(config.serve.key_file),
            allow_private_addresses=config.ingest.allow_private_addresses,
            contact=config.ingest.contact,
        )
