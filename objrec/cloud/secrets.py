"""References to secrets: the configuration names where one lies, and it is read where it is used."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from objrec.config.errors import UserError


def reveal(value: str | None) -> str | None:
    """Return the secret that ``vault:https://NAME.vault.azure.net/secrets/KEY`` or ``env:VARIABLE`` refers to.

    Anything else is the secret itself. A vault is read with the compute's identity, which needs the role
    'Key Vault Secrets User' on it.

    Raises:
        UserError: when the secret is not there or may not be read.
    """
    if value is None:
        return None
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        if not os.environ.get(name):
            raise UserError(f"the environment variable {name}, which should hold a secret, is not set")
        return os.environ[name]
    return _from_vault(value.removeprefix("vault:")) if value.startswith("vault:") else value


def _from_vault(address: str) -> str:
    parts = urlsplit(address)
    names = parts.path.strip("/").split("/")
    if parts.scheme != "https" or len(names) not in (2, 3) or names[0] != "secrets":
        raise UserError(f"vault:{address}: should be vault:https://NAME.vault.azure.net/secrets/KEY")
    try:
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise UserError("reading a key vault needs: pip install 'objrec[azure]'") from None
    from objrec.cloud.workspace import credential, explained, quiet

    quiet()
    with explained(f"read the secret {names[1]} from {parts.netloc} (role 'Key Vault Secrets User'?)"):
        client = SecretClient(f"https://{parts.netloc}", credential())
        value = client.get_secret(names[1], *names[2:]).value
    if not value:
        raise UserError(f"the secret {names[1]} in {parts.netloc} is empty")
    return str(value)
