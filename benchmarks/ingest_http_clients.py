"""Bare downloads a second by HTTP library, from the loopback image server: what the choice of library rests on.

    python benchmarks/ingest_http_clients.py [--count 5000] [--connections 16]

Each library streams the same list in a process of its own, bodies counted and thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


async def with_aiohttp(urls: list[str], connections: int) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        rest = iter(urls)

        async def work() -> None:
            for url in rest:
                async with session.get(url) as response:
                    async for _ in response.content.iter_any():
                        pass

        await asyncio.gather(*(work() for _ in range(connections)))


async def with_httpx(urls: list[str], connections: int) -> None:
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as session:
        rest = iter(urls)

        async def work() -> None:
            for url in rest:
                async with session.stream("GET", url) as response:
                    async for _ in response.aiter_raw():
                        pass

        await asyncio.gather(*(work() for _ in range(connections)))


def in_threads(urls: list[str], connections: int, fetch: Callable[[str], None]) -> None:
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for url in [*urls, *[None] * connections]:
        waiting.put(url)

    def work() -> None:
        while (url := waiting.get()) is not None:
            fetch(url)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def with_urllib3(urls: list[str], connections: int) -> None:
    import urllib3

    pool = urllib3.PoolManager(maxsize=connections)

    def fetch(url: str) -> None:
        response = pool.request("GET", url, preload_content=False, redirect=False, retries=False)
        for _ in response.stream(1 << 16):
            pass
        response.release_conn()

    in_threads(urls, connections, fetch)


def with_requests(urls: list[str], connections: int) -> None:
    import requests

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=connections))

    def fetch(url: str) -> None:
        with session.get(url, stream=True, allow_redirects=False) as response:
            for _ in response.iter_content(1 << 16):
                pass

    in_threads(urls, connections, fetch)


LIBRARIES = {"aiohttp": with_aiohttp, "httpx": with_httpx, "urllib3": with_urllib3, "requests": with_requests}


def child(library: str, port: int, count: int, connections: int) -> None:
    urls = [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(count)]
    begun = time.perf_counter()
    run = LIBRARIES[library](urls, connections)
    if asyncio.iscoroutine(run):
        asyncio.run(run)
    seconds, cpu = time.perf_counter() - begun, sum(os.times()[:2])
    print(f"| {library} | {count / seconds:.0f} | {cpu / count * 1000:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--child", nargs=2, metavar=("LIBRARY", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), options.count, options.connections)
        return
    images = Path(tempfile.gettempdir()) / "objrec-bench-images"
    command = [sys.executable, str(HERE / "image_server.py"), str(images), str(options.count)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = str(int(server.stdout.readline()))
        print("| library | images/s | CPU ms an image |\n| --- | --- | --- |", flush=True)
        sizes = ["--count", str(options.count), "--connections", str(options.connections)]
        for library in LIBRARIES:
            subprocess.run([sys.executable, __file__, "--child", library, port, *sizes], check=True)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
