"""Secrets of a job: its environment variables hold addresses, and the step reads the values when it begins.

A job's definition shows every value in plain text to whoever may read the workspace, so none stands there.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from objrec.config.environment import mark_secret
from objrec.config.errors import UserError

PREFIX = "vault:"


def address(vault_url: str, name: str) -> str:
    """Return what stands in for the secret ``name`` of a vault."""
    return f"{PREFIX}{vault_url.rstrip('/')}/secrets/{name}"


def read_secrets() -> None:
    """Replace each environment variable ``vault:https://NAME.vault.azure.net/secrets/KEY`` by the secret's value.

    The vault is read with the compute's identity (on a user's machine: with theirs), which needs the role
    'Key Vault Secrets User' on it.

    Raises:
        UserError: a secret is not there or may not be read; the message holds the address only.
    """
    for variable, value in list(os.environ.items()):
        if value.startswith(PREFIX):
            os.environ[variable] = _read(variable, value.removeprefix(PREFIX))
            mark_secret(variable)  # what we start ourselves does not get it


def _read(variable: str, place: str) -> str:
    parts = urlsplit(place)
    names = parts.path.strip("/").split("/")
    if parts.scheme != "https" or len(names) not in (2, 3) or names[0] != "secrets":
        raise UserError(f"{variable}={PREFIX}{place}: should be {PREFIX}https://NAME.vault.azure.net/secrets/KEY")
    try:
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise UserError(f"{variable} is in a key vault; reading it needs: pip install 'objrec[azure]'") from None
    from objrec.cloud.workspace import credential, explained, quiet

    quiet()
    with explained(f"read the secret {names[1]} from {parts.netloc} (role 'Key Vault Secrets User'?)"):
        client = SecretClient(f"https://{parts.netloc}", credential())
        found = client.get_secret(names[1], *names[2:]).value
    if not found:
        raise UserError(f"the secret {names[1]} in {parts.netloc} is empty")
    return str(found)
