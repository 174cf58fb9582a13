"""Content-Encoding: bodies that servers compress although they were not asked to."""

from __future__ import annotations

import zlib
from typing import Any, Final

GZIP: Final = 0x1F  # the first byte
KNOWN: Final = ("gzip", "x-gzip", "deflate")


class CodingError(Exception):
    """A body that is not coded as its header says."""


class Inflater:
    """Decompresses a body piece by piece, never more than is asked for.

    A gzip body may have several members, and what follows the last one is padding. ``deflate`` comes with and without
    the wrapper that the standard demands.

    Args:
        coding: one of KNOWN.

    Attributes:
        finished: nothing is missing at the end of the body.
    """

    def __init__(self, coding: str) -> None:
        self._members = coding != "deflate"
        self._stream: Any = None
        self._begun = self._padding = False
        self.finished = True

    def inflate(self, data: bytes, most: int) -> bytes:
        """Return what ``data`` stands for, at most ``most`` bytes (1 or more).

        Raises:
            CodingError: the data is damaged.
        """
        parts: list[bytes] = []
        while data and most > 0 and not self._padding:
            if self._stream is None:
                if self._begun and not (self._members and data[0] == GZIP):
                    self._padding = True
                    break
                self._stream, self._begun = zlib.decompressobj(self._kind(data[0])), True
            try:
                parts.append(self._stream.decompress(data, most))
            except zlib.error as error:
                raise CodingError(f"content encoding: {error}") from None
            most -= len(parts[-1])
            self.finished = self._stream.eof
            if not self.finished:
                break
            data, self._stream = self._stream.unused_data, None
        return b"".join(parts)

    def _kind(self, first: int) -> int:
        """How zlib is to read what begins with the byte ``first``."""
        if self._members or first == GZIP:
            return zlib.MAX_WBITS | 16
        return zlib.MAX_WBITS if first & 0x0F == 8 else -zlib.MAX_WBITS
