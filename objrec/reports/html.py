"""The HTML writer. A page is one file that fetches nothing; the same values give the same bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from objrec.config.errors import UserError
from objrec.images.decode import ImageError, decode
from objrec.images.preprocessing import resize_and_crop
from objrec.system.files import write_atomically

HERE: Final = Path(__file__).parent
THUMBNAIL: Final = 112  # pixels a side: a card on a sharp screen


def write_page(path: Path, template: Path, **values: object) -> None:
    """Render a template that extends ``base.html.j2`` into ``path``.

    Every value is escaped unless it is ``Markup``. Characters that UTF-8 lacks (from file names) become ``?``.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not among ``values``.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {"percent": "{:.1%}".format, "images": count_images}
    environment.tests["link"] = is_link
    # named here, not in the templates: a cache key covers the files that a module beside them names
    environment.globals |= {
        "base": "base.html.j2",
        "ui": environment.get_template("macros.html.j2").module,
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    page = environment.get_template(template.name).render(values)
    write_atomically(path, page.encode("utf-8", "replace"))


def count_images(count: int) -> str:
    """Return "1 image", "2,000 images"."""
    return "1 image" if count == 1 else f"{count:,} images"


def is_link(url: str | None) -> bool:
    """Whether a URL from outside may be made clickable: ``javascript:`` and the like may not."""
    return (url or "").startswith(("https://", "http://"))


def thumbnail(path: Path) -> str:
    """Return a data URI of the centre square of an image, small; empty where it cannot be read any more."""
    try:
        image = decode(path, max_pixels=1 << 40, target=THUMBNAIL)
    except (ImageError, UserError, OSError):
        return ""
    return data_uri(resize_and_crop(image, min(THUMBNAIL, *image.size), "bilinear"), "JPEG", quality=80)


def data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """Return ``image`` in the format ``kind`` of Pillow as a data URI."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
