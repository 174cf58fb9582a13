"""The keys of an endpoint: where they come from, and whether a request gives one of them."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from objrec.config.environment import SERVE_KEY
from objrec.config.errors import UserError

MOST_BYTES = 65536  # of a key file: more is another file by mistake


def read_keys(key_file: str | None) -> list[str]:
    """Return the keys of the endpoint, from ``serve.key_file`` or the environment; none for an open one.

    Raises:
        UserError: for an unreadable file, no key where one was meant, or one that no HTTP header can carry. No message
            repeats a key.
    """
    given = os.environ.get(SERVE_KEY)
    if key_file is not None and given is not None:
        raise UserError(f"serve.key_file and {SERVE_KEY} are both set: unset one of them")
    if key_file is None:
        return [] if given is None else _parse(given, f"{SERVE_KEY} is set, and")
    try:
        path = Path(key_file)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UserError("serve.key_file: is not a file; it should hold a key a line")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode("latin-1")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no name of a file"
        raise UserError(f"serve.key_file: {why}; it should name a file that holds a key a line") from None
    return _parse(text, "serve.key_file")


def _parse(text: str, where: str) -> list[str]:
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise UserError(f"{where} holds no key: write one a line, or unset it for an endpoint without a key")
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise UserError(f"{where} holds a key that no HTTP header can carry: use printable ASCII without spaces")
    return keys


def check_key(keys: Sequence[str], headers: Mapping[bytes, bytes]) -> None:
    """Raise RequestError 401 where the endpoint has keys and ``headers``, by names in lower case, give none of them."""
    if not keys:
        return
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    bearer = credentials.strip() if scheme.lower() == b"bearer" else b""
    given = headers.get(b"x-api-key") or bearer
    from objrec.serving.request import RequestError  # commands that only read keys need no image decoder

    if not any(hmac.compare_digest(given, key.encode()) for key in keys):
        raise RequestError(
            401, "key", "this endpoint needs its key, in the header X-API-Key or as Authorization: Bearer"
        )
