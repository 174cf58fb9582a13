"""A loopback server of images that misbehaves on request, and speaks the wire formats of the image services."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

Writer = asyncio.StreamWriter


@functools.cache
def image(number: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A JPEG that resembles no other number's."""
    cells = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(file, "JPEG", quality=90)
    return file.getvalue()


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def pixel_bomb() -> bytes:
    return encoded(Image.new("L", (9000, 9000)), "PNG")


def head(status: int, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body: bytes, *headers: str, status: int = 200) -> bytes:
    return head(status, *headers, length=len(body)) + body


class BadServer:
    """Serves ``/<behaviour>/<number>...`` in a thread of its own; use as a context manager.

    Attributes:
        hits: requests by path.
        agents: the User-Agents seen.
        catalog: for the services: query -> what they offer, as paths or dictionaries that extend a result.
        robots_answers: whole responses for robots.txt, in order; the last one again and again, b"" for silence.
        targets: what the request lines asked for, letter by letter.
        fault: called with the path and query of a service call; what it returns is answered instead, None for nothing.
    """

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.catalog: dict[str, list[dict[str, Any]]] = {}
        self.fault: Callable[[str, dict[str, str]], bytes | None] = lambda path, query: None
        self.robots: bytes | None = None
        self.robots_answers: list[bytes] = []
        self.targets: list[str] = []
        self.delay = 0.0
        self.most_at_once = self._at_once = 0
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def offer(self, query: str, paths: Sequence[str], **more: Any) -> None:
        self.catalog[query] = [{"path": p, **more} for p in paths]

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                lines = request.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                if length := int(headers.get("content-length", 0)):
                    await reader.readexactly(length)
                self.agents.add(headers.get("user-agent", ""))
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    await self._answer(lines[0].split()[1], headers, writer)
                    await writer.drain()
                finally:
                    self._at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, target: str, headers: dict[str, str], writer: Writer) -> None:
        parts = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.hits[parts.path] += 1
        self.targets.append(target)
        if self.delay:
            await asyncio.sleep(self.delay)
        services = {
            "/v1/images/": self._openverse,
            "/w/api.php": self._commons,
            "/v7.0/images/search": self._bing,
            "/v1/auth_tokens/token/": self._token,
        }
        if service := services.get(parts.path):
            self.calls.append((parts.path, query))
            self.headers.append(headers)
            writer.write(self.fault(parts.path, query) or whole(json.dumps(service(query)).encode()))
        elif parts.path == "/robots.txt" and self.robots_answers:
            answer = self.robots_answers.pop(0) if len(self.robots_answers) > 1 else self.robots_answers[0]
            if not answer:
                await asyncio.sleep(60)
            writer.write(answer)
        elif parts.path == "/robots.txt":
            writer.write(whole(self.robots) if self.robots is not None else whole(b"", status=404))
        else:
            _, behaviour, name = parts.path.split("/", 2)
            await getattr(self, f"do_{behaviour}")(int(name.split(".")[0].split("-")[0]), parts.path, writer)

    # Images and what goes wrong with them. ``n`` is the number in the path.

    async def do_good(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n)))

    async def do_large(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n, (300, 200))))

    async def do_404(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"<html>not here", "Content-Type: text/html", status=404))

    async def do_403(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=403))

    async def do_410(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=410))

    async def do_500(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=500))

    async def do_recovers(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=500) if self.hits[path] == 1 else whole(image(n)))

    async def _busy(self, n: int, path: str, w: Writer, *headers: str) -> None:
        w.write(whole(b"", *headers, status=429) if self.hits[path] == 1 else whole(image(n)))

    async def do_busy(self, n: int, path: str, w: Writer) -> None:
        await self._busy(n, path, w, "Retry-After: 1")

    async def do_busydate(self, n: int, path: str, w: Writer) -> None:
        await self._busy(n, path, w, f"Retry-After: {formatdate(time.time() + 2, usegmt=True)}")

    async def do_busybare(self, n: int, path: str, w: Writer) -> None:
        await self._busy(n, path, w)

    async def do_busyyear(self, n: int, path: str, w: Writer) -> None:
        await self._busy(n, path, w, "Retry-After: 31536000")

    async def do_busyjunk(self, n: int, path: str, w: Writer) -> None:
        await self._busy(n, path, w, "Retry-After: soon, -5")

    async def do_busyforever(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=429))

    async def do_slowhead(self, n: int, path: str, w: Writer) -> None:
        w.write(b"HTTP/1.1 200 OK\r\n")
        for i in range(600):
            w.write(b"X-%d: 1\r\n" % i)
            await w.drain()
            await asyncio.sleep(0.1)

    async def do_slowbody(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, length=100_000))
        for _ in range(600):
            w.write(b"x")
            await w.drain()
            await asyncio.sleep(0.1)

    async def do_silent(self, n: int, path: str, w: Writer) -> None:
        await asyncio.sleep(60)

    async def do_truncated(self, n: int, path: str, w: Writer) -> None:
        body = image(n)
        w.write(head(200, "Connection: close", length=len(body)) + body[: len(body) // 2])
        raise ConnectionError

    async def do_cutimage(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n)[:-300]))

    async def do_shortlength(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, "Connection: close", length=200) + image(n))
        raise ConnectionError

    async def do_nolength(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, "Connection: close") + image(n))
        raise ConnectionError

    async def do_badlength(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, "Content-Length: many") + image(n))
        raise ConnectionError

    async def do_endless(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, "Connection: close"))
        while True:
            w.write(bytes(1 << 16))
            await w.drain()

    async def do_declaredlarge(self, n: int, path: str, w: Writer) -> None:
        w.write(head(200, length=10**12))
        await asyncio.sleep(60)

    async def do_gzip(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(gzip.compress(image(n)), "Content-Encoding: gzip"))

    async def do_coded(self, n: int, path: str, w: Writer) -> None:
        """One of the ways in which an image can be compressed."""
        data = image(n)
        raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body, coding = [
            (gzip.compress(data), "GZIP"),
            (gzip.compress(data), "x-gzip, identity"),
            (gzip.compress(data[:100]) + gzip.compress(b"") + gzip.compress(data[100:]), "gzip"),
            (gzip.compress(data) + bytes(1000), "gzip"),
            (zlib.compress(data), "Deflate"),
            (raw.compress(data) + raw.flush(), "deflate"),
            (data, "identity"),
            (gzip.compress(data)[:-20], "gzip"),
            (gzip.compress(gzip.compress(data)), "gzip, gzip"),
            (gzip.compress(b"") * 20_000, "gzip"),
            (b"no gzip", "gzip"),
        ][n]
        w.write(whole(body, f"Content-Encoding: {coding}"))

    async def do_gzipbomb(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(_gzip_bomb(), "Content-Encoding: gzip"))

    async def do_html(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"<!doctype html><p>log in to see this image", "Content-Type: image/jpeg"))

    async def do_empty(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b""))

    async def do_junk(self, n: int, path: str, w: Writer) -> None:
        w.write(b"\x00\x01 this is no HTTP\r\n\r\n")
        raise ConnectionError

    async def do_loop(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", f"Location: {path}", status=302))

    async def do_moved(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", f"Location: /good/{n}.jpg", status=301))

    async def do_tofile(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", "Location: file:///etc/passwd", status=302))

    async def do_toprivate(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", "Location: http://169.254.169.254/latest/meta-data", status=302))

    async def do_nowhere(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(b"", status=302))

    async def do_optout(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n), "X-Robots-Tag: noimageindex, noai"))

    async def do_optother(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n), "X-Robots-Tag: otherbot: noai"))

    async def do_bomb(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(_bomb()))

    async def do_small(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(n, (20, 20))))

    async def do_same(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(image(0)))

    async def do_resized(self, n: int, path: str, w: Writer) -> None:
        resized = Image.open(io.BytesIO(image(n))).resize((96, 80), Image.Resampling.NEAREST)
        w.write(whole(encoded(resized, "JPEG", quality=85)))

    async def do_cmyk(self, n: int, path: str, w: Writer) -> None:
        w.write(whole(encoded(Image.open(io.BytesIO(image(n))).convert("CMYK"), "JPEG")))

    async def do_animated(self, n: int, path: str, w: Writer) -> None:
        frames = [Image.open(io.BytesIO(image(n + i))).convert("P") for i in range(3)]
        w.write(whole(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))

    # The services.

    def _openverse(self, query: dict[str, str]) -> dict[str, Any]:
        found, size, page = self.catalog.get(query["q"], []), int(query["page_size"]), int(query["page"])
        results = []
        for i, item in enumerate(found[(page - 1) * size : page * size]):
            result = {
                "id": f"{query['q']}-{i}", "title": f"A {query['q']}", "url": self.url(item["path"]),
                "foreign_landing_url": "https://example.org/photo", "creator": "Ana <b>", "license": "by",
                "license_version": "2.0", "license_url": "https://creativecommons.org/licenses/by/2.0/",
                "attribution": '"A" by Ana', "width": None, "height": None, "tags": None, "mature": False,
            }  # fmt: skip
            results.append({**result, **{k: v for k, v in item.items() if k != "path"}})
        pages = -(-len(found) // size)
        return {
            "result_count": len(found), "page_count": pages, "page_size": size, "page": page, "results": results
        }  # fmt: skip

    def _commons(self, query: dict[str, str]) -> dict[str, Any]:
        found = self.catalog.get(query["gsrsearch"].removesuffix(" filetype:bitmap"), [])
        start, size = int(query.get("gsroffset", 0)), int(query["gsrlimit"])
        pages = []
        for i, item in enumerate(found[start : start + size], start=start):
            info = {
                "user": "Ben", "width": 4000, "height": 3000, "thumburl": self.url(item["path"]), "thumbwidth": 960,
                "thumbheight": 720, "url": self.url("/404/1.jpg"), "descriptionurl": "https://example.org/File:x",
                "sha1": "0", "mime": "image/jpeg", "mediatype": "BITMAP",
                "extmetadata": {
                    "LicenseShortName": {"value": "CC BY-SA 4.0"}, "License": {"value": "cc-by-sa-4.0"},
                    "Artist": {"value": '<a href="//x">Ben &amp; Co</a>'},
                },
            }  # fmt: skip
            info |= {k: v for k, v in item.items() if k != "path"}
            pages.append({"pageid": i, "ns": 6, "title": f"File:{i}.jpg", "index": i + 1, "imageinfo": [info]})
        body: dict[str, Any] = {"batchcomplete": True, "query": {"pages": pages[::-1]}}
        if start + size < len(found):
            body["continue"] = {"gsroffset": start + size, "continue": "gsroffset||"}
        return body if pages else {"batchcomplete": True}

    def _bing(self, query: dict[str, str]) -> dict[str, Any]:
        found, start, count = self.catalog.get(query["q"], []), int(query["offset"]), int(query["count"])
        value = [
            {"name": "x", "contentUrl": self.url(i["path"]), "hostPageUrl": None, "width": None, "height": None}
            for i in found[start : start + count]
        ]
        return {
            "_type": "Images", "totalEstimatedMatches": len(found) + 7, "nextOffset": start + len(value),
            "currentOffset": start, "value": value,
        }  # fmt: skip

    def _token(self, query: dict[str, str]) -> dict[str, Any]:
        return {"access_token": "abc", "expires_in": 36000}


@functools.cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(100_000_000))


@functools.cache
def _bomb() -> bytes:
    return pixel_bomb()
