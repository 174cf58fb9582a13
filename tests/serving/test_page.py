"""The page at / in a real browser, and the OpenAPI document under schemathesis."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import image, make_model, running_service

from objrec.deployment.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("page")
    with running_service(root / "registry", make_model(root / "model"), key="geheim") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium (apt-get install chromium) and playwright (pip install playwright)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # playwright's own event loop
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            yield launched
            launched.close()


@pytest.fixture
def page(browser: Any, live: Service) -> Iterator[Any]:
    context = browser.new_context()
    opened = context.new_page()
    opened.requested = []
    opened.on("request", lambda r: opened.requested.append(r.url))
    opened.errors = []
    opened.on("pageerror", lambda e: opened.errors.append(str(e)))
    opened.goto(live.url)
    opened.wait_for_selector("#about dd")
    opened.fill("#key", "geheim")
    yield opened
    assert opened.errors == []
    assert all(u.startswith((live.url, "blob:", "data:")) for u in opened.requested)  # no external requests
    context.close()


DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector("#drop").dispatchEvent(new DragEvent(kind, options));
}"""


@pytest.mark.browser
def test_upload_a_image_and_read_the_answer(page: Any, tmp_path: Path) -> None:
    image("green", 1, size=(200, 150)).save(tmp_path / "meadow.jpg")
    assert "red, green, blue" in page.inner_text("#knows") and "90.0 %" in page.inner_text("#about")
    page.set_input_files("#file", tmp_path / "meadow.jpg")
    page.wait_for_selector(".label")
    assert page.inner_text(".label") == "green"
    assert page.locator(".bars li").count() == 3
    assert re.fullmatch(r"\d+\.\d %", page.inner_text(".bars li:first-child .value"))
    assert page.get_attribute("#preview", "alt") == "Your image meadow.jpg" and page.is_visible("#preview")
    assert "score" in page.inner_text("#curl") and "X-API-Key" in page.inner_text("#curl")


@pytest.mark.browser
def test_drop_a_text_file_and_read_the_error(page: Any) -> None:
    page.evaluate(DROP, ["notes.txt", "text/plain", list(b"hello")])
    page.wait_for_selector(".error")
    assert "That is not an image." in page.inner_text(".error")
    assert page.is_hidden("#preview")


@pytest.mark.browser
def test_drop_a_image_without_the_key(page: Any, tmp_path: Path) -> None:
    image("blue", 1).save(tmp_path / "sea.png")
    page.fill("#key", "wrong")
    page.evaluate(DROP, ["sea.png", "image/png", list((tmp_path / "sea.png").read_bytes())])
    page.wait_for_selector(".error")
    assert "key" in page.inner_text(".error")
    page.fill("#key", "geheim")
    page.evaluate(DROP, ["sea.png", "image/png", list((tmp_path / "sea.png").read_bytes())])
    page.wait_for_selector(".label")
    assert page.inner_text(".label") == "blue"


@pytest.mark.browser
def test_keyboard_and_screen_reader(page: Any) -> None:
    page.focus("#key")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser():
        page.keyboard.press("Space")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "copy"
    assert page.get_attribute("#result", "aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    unlabelled = "() => [...document.querySelectorAll('input')].filter(i => !i.labels.length && !i.ariaLabel).length"
    assert page.evaluate(unlabelled) == 0


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_a_camera_button_no_sideways_scroll_and_enough_contrast(
    browser: Any, live: Service, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme=scheme
    )
    phone = context.new_page()
    phone.goto(live.url)
    phone.wait_for_selector("#about dd")
    assert phone.is_visible("#photo") and phone.get_attribute("#camera", "capture") == "environment"
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    contrast = """() => {
      const linear = (v) => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
      const luminance = (c) => {
        const [r, g, b] = c.match(/\\d+/g).slice(0, 3).map(linear);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const style = getComputedStyle(document.querySelector('.knows')), body = getComputedStyle(document.body);
      const [a, b] = [luminance(style.color), luminance(body.backgroundColor)].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }"""
    assert phone.evaluate(contrast) >= 4.5  # WCAG 2, level AA
    context.close()


def test_the_openapi_document_holds_under_schemathesis(live: Service, tmp_path: Path) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("needs schemathesis (pip install schemathesis)")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{live.url}/openapi.json"]
    options = ["--max-examples=12", "--phases=examples,coverage,fuzzing", "--suppress-health-check=all", "--seed=1"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [*command, *options, f"--checks={checks}", "--header=X-API-Key: geheim"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
