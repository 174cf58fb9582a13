"""What decoding costs is known before, and no more is decoded at once than fits."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objrec.images.budget import Budget, OverBudget, available_memory, decoding_cost
from objrec.images.decode import ImageError

SIDE = 2400
ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import re, sys
from pathlib import Path
import numpy, simplejpeg
from PIL import Image
from objrec.images.budget import decoding_cost
from objrec.images.decode import NotReduced, decode_stored
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
data = Path(sys.argv[1]).read_bytes()
cost = decoding_cost(data, max_pixels=50_000_000, target=48)
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, allowed = most(), cost.memory
try:
    decode_stored(data, max_pixels=50_000_000, target=48, patient=False)
except NotReduced:
    decode_stored(data, max_pixels=50_000_000, target=48)
    allowed = cost.patient
print(most() - before, allowed)
"""


def noise(mode: str) -> Image.Image:
    random = np.random.default_rng(0)
    shape = (SIDE // 8, SIDE // 8, *([len(mode)] if mode in ("RGB", "RGBA", "CMYK") else []))
    return Image.fromarray(random.integers(0, 256, shape, np.uint8), mode).resize((SIDE, SIDE))


def wide() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE), np.uint16))


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


KINDS = {
    "png": lambda: encoded(noise("RGB"), "PNG", compress_level=1),
    "png grey": lambda: encoded(noise("L"), "PNG", compress_level=1),
    "png palette": lambda: encoded(noise("L").convert("P"), "PNG", compress_level=1),
    "png palette with a transparent colour": lambda: encoded(noise("L").convert("P"), "PNG", transparency=3),
    "png alpha": lambda: encoded(noise("RGBA"), "PNG", compress_level=1),
    "png 16 bit": lambda: encoded(wide(), "PNG", compress_level=1),
    "bmp": lambda: encoded(noise("RGB"), "BMP"),
    "gif": lambda: encoded(noise("L").convert("P"), "GIF"),
    "tiff": lambda: encoded(noise("RGB"), "TIFF", compression="tiff_lzw"),
    "webp": lambda: encoded(noise("RGB").convert("RGB"), "WEBP", method=0),
    "jpeg": lambda: encoded(noise("RGB"), "JPEG"),
    "jpeg progressive": lambda: encoded(noise("RGB"), "JPEG", progressive=True, subsampling=0),
    "jpeg progressive 4:2:0": lambda: encoded(noise("RGB"), "JPEG", progressive=True, subsampling=2),
    "jpeg cmyk": lambda: encoded(noise("CMYK"), "JPEG"),
    "jpeg that is not well-formed": lambda: encoded(noise("RGB"), "JPEG", restart_marker_rows=8).replace(
        b"\xff\xd1", b"\xff\xd2", 1
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_than_it_was_said_to(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(KINDS[kind]())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    used, allowed = map(int, done.stdout.split())
    assert used <= allowed + 4_000_000  # libraries, on first use
    assert allowed < 3 * used + 4_000_000 or kind == "jpeg"  # nor is it so much that nothing would fit


def test_the_cost_is_read_from_the_header() -> None:
    data = encoded(noise("RGB"), "JPEG")
    whole, cut = (decoding_cost(d, max_pixels=10**8, target=48) for d in (data, data[:1000]))
    assert whole == cut and whole.pixels == SIDE**2 and whole.memory < whole.patient / 20
    assert decoding_cost(data, max_pixels=10**8).memory > 3 * SIDE**2
    for bad, limit, status in ((b"", 100, "unsupported"), (data, 100, "too_large"), (data[:20], 100, "unsupported")):
        with pytest.raises(ImageError) as raised:
            decoding_cost(bad, max_pixels=limit)
        assert raised.value.status == status


def test_bytes_are_handed_out_in_order_and_come_back() -> None:
    budget, begun = Budget(1000), []

    def take(name: str, cost: int) -> None:
        with budget.take(cost):
            begun.append(name)
            time.sleep(0.05)

    with budget.take(700):
        threads = [threading.Thread(target=take, args=(n, c)) for n, c in (("a", 800), ("b", 250), ("tiny", 10))]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert begun == ["tiny"]  # b would fit, but would keep a waiting
    for thread in threads:
        thread.join()
    assert begun == ["tiny", "a", "b"] and budget.free == 1000


def test_who_waits_too_long_or_asks_too_much_takes_nothing() -> None:
    budget = Budget(1000)
    with pytest.raises(OverBudget), budget.take(1001):
        pass
    with budget.take(800):
        with pytest.raises(TimeoutError), budget.take(300, timeout=0.01):
            pass
        with budget.take(200, timeout=1):  # no longer behind it
            pass
    assert budget.free == 1000


def test_the_same_in_an_event_loop() -> None:
    budget = Budget(1000)

    async def main() -> list[str]:
        async def wait() -> str:
            try:
                async with budget.taken(300, timeout=0.05):
                    return "got it"
            except TimeoutError:
                return "too late"

        async with budget.taken(800):
            first = await wait()
            cancelled = asyncio.create_task(wait())
            await asyncio.sleep(0.01)
            cancelled.cancel()
            second = asyncio.create_task(wait())
            await asyncio.sleep(0.01)
        return [first, await second]

    assert asyncio.run(main()) == ["too late", "got it"] and budget.free == 1000


def test_available_memory_knows_control_groups(tmp_path: Path) -> None:
    def write(name: str, text: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    assert available_memory(tmp_path) == 2**30
    write("proc/meminfo", "MemTotal: 8 kB\nMemAvailable:    4000 kB")
    assert available_memory(tmp_path) == 4_096_000
    write("proc/self/cgroup", "0::/a/b")
    write("sys/fs/cgroup/a/b/memory.max", "max")
    write("sys/fs/cgroup/a/b/memory.current", 5)
    write("sys/fs/cgroup/a/memory.max", 3000)
    write("sys/fs/cgroup/a/memory.current", 1000)
    assert available_memory(tmp_path) == 2000
    write("proc/self/cgroup", "3:cpu:/x\n4:memory:/not/there")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", 900)
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", 1000)
    assert available_memory(tmp_path) == 0
    assert available_memory() > 0
