"""What a running service needs to know, as plain data that travels to another process."""

from __future__ import annotations

import hashlib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from objrec.config.schema import Config
from objrec.serving.keys import read_keys

LOADING = "the model is being loaded"  # what /readyz answers until there is a model or a reason why not


class ServiceSettings(BaseModel):
    """The ``serve`` section and what surrounds it. ``keys`` are secrets: they travel over a pipe."""

    model_config = ConfigDict(frozen=True)

    registry_dir: str
    model_dir: str | None = None  # serve this folder, whatever the registry says
    max_pixels: int
    host: str
    port: int
    keys: list[str]
    runtime: str
    precision: str
    workers: int | None
    queue: int
    timeout: float
    max_batch: int
    grace: float
    drain: float
    cors: list[str]
    root_path: str
    allow_urls: bool
    allow_private_addresses: bool
    contact: str | None
    memory: int | None  # None: chosen by what is available
    max_bytes: int
    max_head: int
    max_headers: int
    max_target: int
    top_k: int

    @property
    def digest(self) -> str:
        """A short hash that tells of a difference, and not of the keys."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def of(cls, config: Config, *, registry_dir: str, model_dir: str | None = None) -> Self:
        """Collect the settings. Raises UserError for keys that cannot be read."""
        serve: dict[str, Any] = {name: getattr(config.serve, name) for name in type(config.serve).model_fields}
        memory = None if config.serve.memory == "auto" else config.serve.memory
        return cls(
            registry_dir=registry_dir,
            keys=read_keys(config.serve.key_file),
            model_dir=model_dir,
            allow_private_addresses=config.ingest.allow_private_addresses,
            contact=config.ingest.contact,
            **{k: v for k, v in serve.items() if k in cls.model_fields} | {"memory": memory},
        )
