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
from helpers.serving import image, make_model, put_in_registry, request, running_service, to_bytes
from PIL import Image

from objrec.config.load import load_config
from objrec.deployment.service import Service
from objrec.evaluation.unknown import KEEP
from objrec.inference.predictor import Predictor
from objrec.inference.smoke import Smoke, smoke_file
from objrec.serving.metrics import Metrics
from objrec.serving.model_manager import ModelManager
from objrec.serving.settings import ServiceSettings

UNKNOWN = {"score": "max_probability", "threshold": 0.6}
LONG = "a-class-of-a-long-name-" * 12

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("page")
    with running_service(root / "registry", make_model(root / "model"), key="geheim") as started:
        yield started


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A model of the sample, with a threshold for unknown images, test images to try and a class of a long name."""
    root = tmp_path_factory.mktemp("sample")
    about = {"sources": ["sample"], "num_training_images": 700, "unknown": UNKNOWN}
    model = make_model(root / "model", classes=["red", "green", LONG], **about)
    predictor = Predictor.load(model)
    images = [to_bytes(image(name, 1)) for name in ("red", "green")]
    rows = [predictor.probabilities(predictor.pixels(data)[None])[0].tolist() for data in images]
    put_in_registry(root / "registry", model)
    file = smoke_file(root / "registry", predictor.card.sha256)
    file.parent.mkdir(exist_ok=True)
    file.write_text(Smoke(images, rows).dumps())
    with running_service(root / "registry", model) as started:
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


@pytest.fixture
def visit(browser: Any, sample: Service) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    opened = context.new_page()
    opened.errors = []
    opened.on("pageerror", lambda e: opened.errors.append(str(e)))
    opened.goto(sample.url)
    opened.wait_for_selector("#about dd")
    yield opened
    assert opened.errors == []
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector("#drop").dispatchEvent(new DragEvent(kind, options));
}"""


@pytest.mark.browser
def test_upload_an_image_and_read_the_answer(page: Any, tmp_path: Path) -> None:
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
def test_drop_an_image_without_the_key(page: Any, tmp_path: Path) -> None:
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
    page.keyboard.press("Tab")  # over the button that submits the key
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


def _drop(page: Any, drawn: Image.Image, name: str = "some.png") -> None:
    page.evaluate(DROP, [name, "image/png", list(to_bytes(drawn, "PNG"))])


@pytest.mark.browser
def test_an_image_of_none_of_the_classes_is_not_called_one(visit: Any) -> None:
    _drop(visit, Image.new("RGB", (40, 40), (128, 128, 128)))
    visit.wait_for_selector(".label")
    assert visit.inner_text(".label") == "Probably none of these classes"
    assert f"{100 * KEEP:.0f} % of images of the classes score 0.600 or more" in visit.inner_text(
        ".sure"
    ) and "sure" not in visit.inner_text(".sure")
    assert "unknown=true" in visit.inner_text("#curl")


@pytest.mark.browser
def test_the_page_says_what_the_model_was_trained_on_and_offers_test_images(visit: Any) -> None:
    assert "700 drawings made by this program" in visit.inner_text("#about")
    assert "drawings, not on photographs" in visit.inner_text("#knows")
    visit.wait_for_selector("#examples button:nth-of-type(2)")
    visit.click("#examples button:nth-of-type(2)")
    visit.wait_for_selector(".label")
    assert visit.inner_text(".label") == "green"


@pytest.mark.browser
def test_several_files_are_all_answered(visit: Any, tmp_path: Path) -> None:
    names = ["one.png", "two.png", "three.txt"]
    for name, label in zip(names, ("red", "green", None), strict=True):
        (tmp_path / name).write_bytes(b"hello" if label is None else to_bytes(image(label, 2), "PNG"))
    visit.set_input_files("#file", [tmp_path / name for name in names])
    visit.wait_for_selector(".many li:nth-child(3)")
    assert visit.locator(".many b").all_inner_texts() == ["red", "green", "That is not an image."]
    assert visit.locator(".many small").all_inner_texts() == names


@pytest.mark.browser
def test_a_request_can_be_cancelled(visit: Any) -> None:
    visit.route("**/score*", lambda route: None)
    _drop(visit, image("red", 1))
    visit.click("#cancel")
    visit.wait_for_selector(".empty")
    assert visit.inner_text(".empty") == "Cancelled."


@pytest.mark.browser
def test_a_proxy_that_answers_is_not_an_endpoint_that_does_not_run(visit: Any) -> None:
    visit.route("**/score*", lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad Gateway"))
    _drop(visit, image("red", 1))
    visit.wait_for_selector(".error")
    assert "a proxy" in visit.inner_text(".error") and "502" in visit.inner_text(".error")
    assert "running" not in visit.inner_text(".error")


@pytest.mark.browser
@pytest.mark.parametrize(("works", "said"), [(True, "Copied"), (False, "Select and copy it")])
def test_copied_is_said_of_what_was_copied(visit: Any, works: bool, said: str) -> None:
    visit.evaluate(
        "(works) => { navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => works; }",
        works,
    )
    visit.click("#copy")
    visit.wait_for_function("document.querySelector('#copy').textContent !== 'Copy'")
    assert visit.inner_text("#copy") == said


@pytest.mark.browser
def test_enter_in_the_key_field_asks_again(page: Any) -> None:
    page.fill("#key", "wrong")
    _drop(page, image("blue", 1))
    page.wait_for_selector(".error")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "geheim")
    page.keyboard.press("Enter")
    page.wait_for_selector(".label")
    assert page.inner_text(".label") == "blue"


@pytest.mark.browser
def test_the_interface_page_shows_every_route(page: Any, live: Service) -> None:
    page.goto(f"{live.url}/docs")
    page.wait_for_selector("section h2")
    shown = page.locator("h2 code").all_inner_texts()
    assert "POST /score" in shown and "GET /version" in shown
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("choice", "sources", "shown"), [
    ("auto", ["sample"], True), ("auto", ["sample", "folder"], False), ("auto", [], False),
    ("true", ["folder"], True), ("false", ["sample"], False),
])  # fmt: skip
def test_test_images_are_offered_of_the_sample_only(
    tmp_path: Path, choice: str, sources: list[str], shown: bool
) -> None:
    predictor = Predictor.load(make_model(tmp_path / "model", sources=sources))
    settings = ServiceSettings.of(load_config([f"serve.examples={choice}"]), registry_dir=str(tmp_path))
    smoke = Smoke([b"image"], [[1.0, 0.0, 0.0]])
    models = ModelManager(settings, Metrics(lambda: 0))
    assert bool(models._examples(predictor.card, smoke)) is shown


def test_examples_are_behind_the_key_and_numbered(live: Service, sample: Service) -> None:
    assert request(live.url, "GET", "/examples/0").status == 401
    assert request(live.url, "GET", "/examples/0", headers={"X-API-Key": "geheim"}).status == 404
    assert request(sample.url, "GET", "/examples/1").body == to_bytes(image("green", 1))
    assert request(sample.url, "GET", "/examples/2").body["error"] == "no_example"


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
