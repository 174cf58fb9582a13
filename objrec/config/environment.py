"""Environment variables that hold secrets, and what a child process gets of the environment: not those, by default."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

SERVE_KEY: Final = "OBJREC_SERVE_KEY"
AZURE: Final = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD")
SEARCH: Final = (
    "COGNITIVE_SERVICES_API_KEY",
    "BING_SEARCH_V7_SUBSCRIPTION_KEY",
    "OPENVERSE_CLIENT_ID",
    "OPENVERSE_CLIENT_SECRET",
)
NAMES: Final = (SERVE_KEY, "OBJREC_KEY", *AZURE, *SEARCH)
_read_from_a_vault: set[str] = set()


def mark_secret(variable: str) -> None:
    """Treat this variable of our environment as a secret from here on."""
    _read_from_a_vault.add(variable)


def child_environment(keep: Iterable[str] = (), **more: str) -> dict[str, str]:
    """Return our environment without the secrets, save those to ``keep``, and with ``more`` variables."""
    hidden = {*NAMES, *_read_from_a_vault} - set(keep)
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, **more}


def drop_secrets(keep: Iterable[str] = ()) -> None:
    """Forget the secrets that this process does not read, so that no child of any library gets them."""
    for name in set(NAMES) - set(keep):
        os.environ.pop(name, None)
