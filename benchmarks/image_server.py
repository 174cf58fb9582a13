"""A loopback server of distinct JPEG images, quick enough not to be what a benchmark of downloaders measures.

python benchmarks/image_server.py FOLDER COUNT     makes FOLDER/images.bin when absent, prints the port, serves
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image


def make_image(number: int) -> bytes:
    """An image of 400 x 300 px and about 30 kB that resembles no other one."""
    rng = np.random.default_rng(number)
    layers = np.zeros((300, 400, 3), dtype=np.float32)
    for cells, strength in ((5, 55), (20, 30), (75, 16), (200, 8)):
        noise = rng.normal(0, strength, (cells * 3 // 4, cells, 3)).clip(-3 * strength, 3 * strength)
        small = Image.fromarray((noise + 128).clip(0, 255).astype(np.uint8))
        layers += np.asarray(small.resize((400, 300), Image.Resampling.BICUBIC), dtype=np.float32) - 128
    file = io.BytesIO()
    Image.fromarray((layers + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=86)
    return file.getvalue()


def load_images(folder: Path, count: int) -> list[bytes]:
    """Read the images made by an earlier call, or make them."""
    index, data = folder / f"images-{count}.json", folder / f"images-{count}.bin"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            made = list(pool.map(make_image, range(count), chunksize=50))
        data.write_bytes(b"".join(made))
        index.write_text(json.dumps([len(m) for m in made]))
    sizes, blob = json.loads(index.read_text()), data.read_bytes()
    ends = np.cumsum(sizes).tolist()
    return [blob[end - size : end] for end, size in zip(ends, sizes, strict=True)]


class Server(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and nothing else: GET /NUMBER.jpg."""

    responses: list[bytes]
    first = last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._pending = cast(asyncio.WriteTransport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            path = self._pending.split(b" ", 2)[1]
            self._pending = self._pending[end + 4 :]
            now = time.monotonic()
            if path == b"/span":  # seconds from the first to the last image since the last such question
                body = b"%.3f" % (self.last - self.first)
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                Server.first = Server.last = 0.0
                continue
            if path == b"/robots.txt":
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            else:
                Server.first, Server.last = Server.first or now, now
                self._transport.write(self.responses[int(path[1:-4])])


async def serve(images: list[bytes]) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    Server.responses = [head.format(len(p)).encode() + p for p in images]
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(load_images(Path(sys.argv[1]), int(sys.argv[2]))))
