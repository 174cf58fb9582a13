"""The embedded source: images drawn by the program, so that everything runs with no key and no network."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from objrec.sources.base import Candidate
from objrec.sources.drawings import FIGURES, Color, Pen, Random, hsv, paint, shade
from objrec.sources.emblems import emblem

SIZES: Final = (96, 104, 112, 120, 128)  # pixels of the shorter side
PLACES: Final = ("sky", "meadow", "water", "road", "room")
USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "airplane": ("sky", "road"), "automobile": ("road", "meadow"), "bird": ("sky", "meadow", "water"),
    "cat": ("room", "meadow"), "deer": ("meadow",), "dog": ("meadow", "room"), "frog": ("meadow", "water"),
    "horse": ("meadow", "road"), "ship": ("water",), "truck": ("road", "meadow"),
}  # fmt: skip
UNUSUAL: Final = 0.4  # share of images in a random place, so that the place does not give the class away
UPRIGHT: Final = 0.12  # standard deviation of the tilt in radians


class SampleSource:
    """A LocalSource without end: image ``i`` of a class is a function of seed, class name and ``i``.

    The ten CIFAR-10 names have drawings of their own; any other name gets an emblem derived from it.

    Args:
        seed: another seed, other images.
    """

    name = "sample"

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def class_names(self) -> None:
        return None

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        for i in itertools.count():
            yield Candidate(
                class_name=class_name,
                source=self.name,
                url=f"sample:{self._seed}/{class_name}/{i}",
                query=class_name,
                title=f"Drawing of {class_name}",
                license="cc0",
                license_url="https://creativecommons.org/publicdomain/zero/1.0/",
                creator="objrec",
            )

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        """Return the image as JPEG; the same bytes for the same candidate."""
        number = int(candidate.url.rpartition("/")[2])
        return draw(candidate.class_name, number, seed=self._seed)


def draw(class_name: str, number: int, *, seed: int) -> bytes:
    """Draw an image of ``class_name`` and return it as JPEG."""
    key = hashlib.sha256(f"{seed}/{class_name}/{number}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, dtype=np.uint32))
    short = int(rng.choice(SIZES))
    long = round(short * rng.uniform(1.0, 1.4))
    width, height = (long, short) if rng.random() < 0.75 else (short, long)

    scale = 2  # drawn larger and reduced, for soft edges
    canvas = _background(class_name, width * scale, height * scale, rng)
    pencil = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4)):
        _clutter(pencil, canvas.size, rng)
    figure = FIGURES.get(class_name) or emblem(class_name)
    figure(Pen(pencil, _pose(width * scale, height * scale, rng)), rng)
    if rng.random() < 0.25:
        _occluder(pencil, canvas.size, rng)
    return _photograph(canvas.reduce(scale), rng)


def _pose(width: int, height: int, rng: Random) -> np.ndarray:
    """Return the 2 x 3 matrix that places the figure: size, tilt, mirror image, shear, off the centre."""
    size = min(width, height) * rng.uniform(0.34, 0.47)
    angle = rng.normal(0, UPRIGHT)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    stretch = np.array([[flip * rng.uniform(0.85, 1.12), rng.normal(0, 0.08)], [0.0, rng.uniform(0.85, 1.12)]])
    slack = np.array([width, height]) / 2 - 0.85 * size
    centre = np.array([width, height]) / 2 + rng.uniform(-0.7, 0.7, size=2) * np.maximum(slack, 0)
    return np.column_stack([size * turn @ stretch, centre])


def _background(class_name: str, width: int, height: int, rng: Random) -> Image.Image:
    usual = USUAL.get(class_name, PLACES)
    place = rng.choice(PLACES if rng.random() < UNUSUAL else usual)
    light = rng.uniform(0.55, 1.0)
    sky = hsv(rng.uniform(0.52, 0.64), rng.uniform(0.05, 0.55), light)
    ground: Color = {
        "sky": hsv(rng.uniform(0.5, 0.64), rng.uniform(0.03, 0.35), light),
        "meadow": hsv(rng.uniform(0.17, 0.36), rng.uniform(0.3, 0.75), light * rng.uniform(0.4, 0.8)),
        "water": hsv(rng.uniform(0.47, 0.63), rng.uniform(0.35, 0.75), light * rng.uniform(0.45, 0.85)),
        "road": hsv(0.1, rng.uniform(0.0, 0.18), light * rng.uniform(0.35, 0.75)),
        "room": hsv(rng.uniform(0.02, 0.12), rng.uniform(0.2, 0.6), light * rng.uniform(0.4, 0.8)),
    }[place]
    if place == "room":
        sky = hsv(rng.random(), rng.uniform(0.05, 0.4), light)
    horizon = rng.uniform(0.3, 0.7)
    rows = np.linspace(0, 1, height)[:, None]
    blend = np.clip((rows - horizon) / (0.02 if place != "sky" else 0.6) + 0.5, 0, 1)
    column = np.asarray(sky) * (1.1 - 0.25 * rows) * (1 - blend) + np.asarray(ground) * (0.85 + 0.25 * rows) * blend
    side = np.linspace(rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1), width)
    pixels = column[:, None, :] * side[None, :, None]
    coarse = rng.normal(
        0, rng.uniform(4, 16), size=(rng.integers(6, 20), rng.integers(6, 20))
    )  # grass, waves, wallpaper
    texture = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    return Image.fromarray((pixels + texture[:, :, None]).clip(0, 255).astype(np.uint8))


def _clutter(pencil: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    """A cloud, stone, pole, crate or hill somewhere behind the figure."""
    width, height = size
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    extent = rng.uniform(0.05, 0.2) * min(width, height)
    color = paint(rng) if rng.random() < 0.5 else hsv(rng.random(), 0.25, rng.uniform(0.3, 0.9))
    kind = rng.integers(0, 5)
    if kind == 0:
        for dx in (-0.8, 0.0, 0.8):
            r = extent * rng.uniform(0.6, 1.0)
            pencil.ellipse((x + dx * extent - r, y - r * 0.6, x + dx * extent + r, y + r * 0.6), fill=color)
    elif kind == 1:
        pencil.rectangle((x, y - 3 * extent, x + extent * 0.3, y + 3 * extent), fill=color)
    elif kind == 2:
        pencil.rectangle((x - extent, y - extent * 0.7, x + extent, y + extent * 0.7), fill=color)
    elif kind == 3:
        pencil.polygon([(x - 2 * extent, y + extent), (x, y - extent), (x + 2 * extent, y + extent)], fill=color)
    else:
        points = [(x + rng.normal(0, extent), y + rng.normal(0, extent)) for _ in range(5)]
        pencil.line(points, fill=color, width=max(1, round(extent * 0.12)))


def _occluder(pencil: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    """Something in front: a post, or leaves from an edge."""
    width, height = size
    color = hsv(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.7))
    if rng.random() < 0.5:
        x, w = rng.uniform(0.1, 0.9) * width, rng.uniform(0.03, 0.09) * width
        pencil.polygon([(x, 0), (x + w, 0), (x + w * 1.2, height), (x + w * 0.2, height)], fill=color)
    else:
        x = rng.choice((0.0, 1.0)) * width
        for _ in range(7):
            cx, cy = x + rng.normal(0, 0.15) * width, rng.uniform(0.1, 1.0) * height
            rx, ry = rng.uniform(0.03, 0.1, size=2) * width
            pencil.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=shade(color, rng.uniform(0.7, 1.2)))


def _photograph(image: Image.Image, rng: Random) -> bytes:
    """Blur, exposure, colour cast, sensor noise and JPEG compression."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0)))
    pixels = np.asarray(image, dtype=np.float32)
    contrast = rng.uniform(0.7, 1.15)
    cast = rng.uniform(0.9, 1.1, size=3).astype(np.float32)
    pixels = (pixels - 128) * contrast * cast + 128 + rng.uniform(-22, 22)
    pixels += rng.standard_normal(pixels.shape[:2], dtype=np.float32)[:, :, None] * rng.uniform(2, 12)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(82, 95)))
    return file.getvalue()
