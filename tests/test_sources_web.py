"""The clients of the image services, each against its wire format, paging, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.ingest.api import StoredApi
from objrec.ingest.download import Downloader
from objrec.ingest.store import Store
from objrec.sources.base import Candidate, SourceStopped
from objrec.sources.build import build_sources, nodes_of
from objrec.sources.licenses import code_of, url_of
from objrec.sources.urls import UrlsSource
from tests.bad_server import BadServer, whole
from tests.test_ingest_download import LIMITS


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setenv("COGNITIVE_SERVICES_API_KEY", "key")
    for name in ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with BadServer() as made:
        yield made


def offers(server: BadServer, source: str, tmp_path: Path, *more: str, name: str = "cat") -> list[Candidate]:
    """All candidates of a class through the real client."""
    overrides = [
        f"source={source}",
        f"source.endpoint={server.url('/')}",
        "source.interval=0",
        "ingest.contact=a@b.org",
    ]
    config = load_config([*overrides, *more])

    async def go() -> list[Candidate]:
        loop = asyncio.get_running_loop()
        store = Store(tmp_path / "store", limits="")
        async with Downloader(LIMITS, contact="a@b.org", host_limits={}) as downloader:
            api = StoredApi(downloader, store, loop, refresh=False)
            with ThreadPoolExecutor(1) as pool:
                (made,) = build_sources(config.source, api=api, seed=0)
                try:
                    return await loop.run_in_executor(pool, lambda: list(made.candidates(name)))
                finally:
                    api.close()
                    store.close()

    return asyncio.run(go())


SERVICES = ("openverse", "commons", "bing")


@pytest.mark.parametrize("source", SERVICES)
@pytest.mark.parametrize("count", [0, 1, 20, 50, 151, 163])
def test_paging_offers_each_result_once_and_in_order(
    server: BadServer, tmp_path: Path, source: str, count: int
) -> None:
    server.offer("cat", [f"/good/{i}.jpg" for i in range(count)])
    assert [c.url for c in offers(server, source, tmp_path)] == [server.url(f"/good/{i}.jpg") for i in range(count)]
    calls = len(server.calls)
    size = {"openverse": 20, "commons": 50, "bing": 150}[source]
    assert calls <= -(-count // size) + 2
    offers(server, source, tmp_path)
    assert len(server.calls) == calls, "answers are remembered"


def test_openverse_asks_for_what_is_configured(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat photo", ["/good/1.jpg"])
    (found,) = offers(server, "openverse", tmp_path, "source.query='{name} photo'", "source.licenses=[cc0,by]")
    assert found.query == "cat photo" and found.license == "by" and found.creator == "Ana <b>"
    asked = server.calls[0][1]
    assert asked == {
        "q": "cat photo", "page": "1", "page_size": "20", "mature": "false", "license": "cc0,by",
        "category": "photograph",
    }  # fmt: skip
    server.offer("crane bird", ["/good/2.jpg"])
    assert len(offers(server, "openverse", tmp_path, "source.queries={crane: crane bird}", name="crane")) == 1


def test_openverse_with_a_key(server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENVERSE_CLIENT_ID", "me")
    monkeypatch.setenv("OPENVERSE_CLIENT_SECRET", "hidden")
    server.offer("cat", [f"/good/{i}.jpg" for i in range(100)])
    assert len(offers(server, "openverse", tmp_path)) == 100
    assert [path for path, _ in server.calls] == ["/v1/auth_tokens/token/", "/v1/images/", "/v1/images/"]
    assert server.headers[1]["authorization"] == "Bearer abc"
    stored = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"hidden" not in stored and b"Bearer" not in stored


def test_commons_takes_the_thumbnail_and_reads_the_metadata(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", ["/good/1.jpg"])
    (found,) = offers(server, "commons", tmp_path)
    assert found.url == server.url("/good/1.jpg") and (found.width, found.height) == (960, 720)
    assert (found.license, found.creator) == ("by-sa", "Ben & Co")
    assert server.calls[0][1]["iiurlwidth"] == "960" and server.calls[0][1]["maxlag"] == "5"
    assert "(a@b.org)" in next(iter(server.agents))
    with pytest.raises(UserError, match="thumbnails of 20, 40"):
        offers(server, "commons", tmp_path, "source.width=800")


@pytest.mark.parametrize("source", SERVICES)
def test_null_fields_everywhere(server: BadServer, tmp_path: Path, source: str) -> None:
    nulls: dict[str, dict[str, Any]] = {
        "openverse": dict.fromkeys(
            [
                "id",
                "title",
                "foreign_landing_url",
                "creator",
                "license",
                "license_version",
                "license_url",
                "attribution",
            ]
        ),
        "commons": {**dict.fromkeys(["user", "thumbwidth", "descriptionurl", "mediatype"]), "extmetadata": None},
        "bing": {},
    }
    server.catalog["cat"] = [{"path": "/good/1.jpg", **nulls[source]}]
    (found,) = offers(server, source, tmp_path)
    assert (found.title is None or source != "openverse") and found.license is None and found.creator is None


ODD_ANSWERS: list[Any] = [
    *(None, [], "text", 7, {}),
    {"results": None, "query": None, "value": None},
    {
        "results": [None, 3, {"url": 5}],
        "page_count": 1,
        "query": {"pages": [None, {}, {"imageinfo": []}, {"imageinfo": [{"url": None}]}]},
        "value": [None, {"contentUrl": None}],
        "totalEstimatedMatches": None,
    },
]


@pytest.mark.parametrize("source", SERVICES)
@pytest.mark.parametrize("body", ODD_ANSWERS)
def test_answers_out_of_protocol_end_quietly_or_stop_the_source(
    server: BadServer, tmp_path: Path, source: str, body: Any
) -> None:
    server.fault = lambda path, query: whole(json.dumps(body).encode())
    with contextlib.suppress(SourceStopped):
        assert offers(server, source, tmp_path) == []
    assert len(server.calls) <= 6


def test_what_is_no_json_stops_the_source(server: BadServer, tmp_path: Path) -> None:
    server.fault = lambda path, query: whole(b"<html>maintenance")
    for source in SERVICES:
        with pytest.raises(SourceStopped):
            offers(server, source, tmp_path)


def test_repeated_pages_end(server: BadServer, tmp_path: Path) -> None:
    page = {"page_count": 1000, "results": [{"url": server.url("/good/1.jpg")}]}
    server.fault = lambda path, query: whole(json.dumps(page).encode())
    assert len(offers(server, "openverse", tmp_path)) == 1
    still = {"totalEstimatedMatches": 900, "nextOffset": 0, "value": [{"contentUrl": server.url("/good/1.jpg")}]}
    server.fault = lambda path, query: whole(json.dumps(still).encode())
    assert len(offers(server, "bing", tmp_path)) == 1
    again = {"continue": {"gsroffset": 50}, "query": {"pages": []}}
    server.fault = lambda path, query: whole(json.dumps(again).encode())
    assert offers(server, "commons", tmp_path) == []
    assert len(server.calls) <= 6


ERRORS: list[tuple[str, int, Any, str]] = [
    ("openverse", 401, {"detail": "page_size"}, "401"),
    ("openverse", 403, None, "data centres"),
    ("openverse", 429, {"detail": "Request was throttled."}, "200 calls a day"),
    ("openverse", 500, None, "HTTP 500"),
    ("commons", 200, {"error": {"code": "ratelimited", "info": "slow down"}}, "fewer calls"),
    ("commons", 200, {"error": {"code": "badvalue", "info": "unrecognised"}}, "badvalue unrecognised"),
    ("commons", 403, None, "ingest.contact"),
    ("commons", 429, None, "fewer calls"),
    ("bing", 401, {"_type": "ErrorResponse", "errors": [{"message": "bad key"}]}, "bad key.*not accepted"),
    ("bing", 403, {"_type": "ErrorResponse", "errors": []}, "quota"),
    ("bing", 410, None, "https"),
    ("bing", 200, {"_type": "ErrorResponse", "errors": [{"message": "odd"}]}, "odd"),
]


@pytest.mark.parametrize("source, status, body, message", ERRORS)
def test_errors_stop_the_source_and_say_why(
    server: BadServer, tmp_path: Path, source: str, status: int, body: Any, message: str
) -> None:
    answer = whole(b"" if body is None else json.dumps(body).encode(), "Retry-After: 0", status=status)
    server.fault = lambda path, query: answer
    with pytest.raises(SourceStopped, match=message):
        offers(server, source, tmp_path)
    assert len(server.calls) <= 6


def test_what_passes_is_waited_for(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", ["/good/1.jpg"])
    lag = whole(json.dumps({"error": {"code": "maxlag", "info": "lagged"}}).encode(), "Retry-After: 0")
    busy = whole(b"", "Retry-After: 0", status=429)
    for source, first in (("commons", lag), ("openverse", busy), ("bing", busy), ("commons", whole(b"", status=503))):
        before = len(server.calls)
        server.fault = lambda path, query, before=before, first=first: (
            first if len(server.calls) == before + 1 else None
        )
        assert len(offers(server, source, tmp_path / f"{source}{before}")) == 1


def test_a_service_that_is_not_there(tmp_path: Path, server: BadServer) -> None:
    with pytest.raises(SourceStopped, match="cannot be reached"):
        offers(server, "openverse", tmp_path, "source.endpoint=http://127.0.0.1:1")


def test_bing_says_what_it_is_and_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("COGNITIVE_SERVICES_API_KEY", "BING_SEARCH_V7_SUBSCRIPTION_KEY", "BING_SEARCH_V7_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    node = load_config(["source=bing"]).source
    with pytest.raises(UserError, match=r"(?s)retired.*2025-08-11.*COGNITIVE_SERVICES_API_KEY"):
        build_sources(node, api=None)
    monkeypatch.setenv("BING_SEARCH_V7_SUBSCRIPTION_KEY", "k")
    monkeypatch.setenv("BING_SEARCH_V7_ENDPOINT", "https://search.example.org/")
    build_sources(node, api=None)
    assert "retired" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, code",
    [
        ("CC BY-SA 4.0", "by-sa"),
        ("cc-by-sa-3.0", "by-sa"),
        ("by", "by"),
        ("CC BY 2.0", "by"),
        ("CC0", "cc0"),
        ("cc-zero", "cc0"),
        ("Public domain", "pdm"),
        ("PD-USGov", "pdm"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "by-nc-nd"),
        ("Creative Commons Attribution-Share Alike 4.0", None),
        ("CC BY-NC-SA 2.0", "by-nc-sa"),
        ("GFDL", None),
        ("bytes", None),
        ("", None),
        (None, None),
    ],
)
def test_license_codes(text: str | None, code: str | None) -> None:
    assert code_of(text) == code


def test_license_pages() -> None:
    assert url_of("by-sa", "3.0") == "https://creativecommons.org/licenses/by-sa/3.0/"
    assert url_of("GFDL") is None and url_of(None) is None


ROWS: list[Mapping[str, Any]] = [
    {"url": "https://example.org/1.jpg", "class": "cat", "licence": "CC BY 4.0", "creator": "Ana"},
    {"url": "https://example.org/2.jpg", "class": "dog", "licence": None, "creator": None},
]


def write_list(path: Path) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist([dict(r) for r in ROWS]), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        lines = [sign.join(ROWS[0]), *(sign.join(str(v or "") for v in r.values()) for r in ROWS)]
        path.write_text("\ufeff" + "\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_lists_of_urls(tmp_path: Path, suffix: str) -> None:
    source = UrlsSource(path=write_list(tmp_path / f"list{suffix}"))
    assert source.class_names() == ["cat", "dog"]
    (cat,) = source.candidates("cat")
    assert (cat.url, cat.license, cat.creator) == ("https://example.org/1.jpg", "by", "Ana")
    with pytest.raises(UserError, match="Did you mean 'dog'"):
        list(source.candidates("doq"))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "url,klass\nhttp://x/1,cat\n", "row 1 has no 'class' .columns: url, klass"),
        ("a.csv", "url,class\n,cat\n", "row 1 has no 'url'"),
        ("a.csv", "url,class\n", "the list is empty"),
        ("a.csv", "url,class\nhttp://x/1,../up\n", "cannot be the name of a folder"),
        ("a.jsonl", "{not json}\n", "cannot be read"),
        ("a.jsonl", "[1]\n", "row 1 is no object"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.txt", "http://x/1", "should end in .csv"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        UrlsSource(path=tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        UrlsSource(path=tmp_path / "nowhere.csv")


def test_a_list_of_sources_is_several_sources() -> None:
    overrides = ["source=[openverse,commons]", "ingest.contact=a@b.org", "source.licenses=[cc0]", "source.interval=0.5"]
    nodes = nodes_of(load_config(overrides).source)
    assert [n.target.rpartition(".")[2] for n in nodes] == ["OpenverseSource", "CommonsSource"]
    assert all(n.licenses == ["cc0"] and (n.model_extra or {})["interval"] == 0.5 for n in nodes)
    assert (nodes[0].model_extra or {})["filters"] == {"category": "photograph"}
    assert load_config(["source=[openverse]"]).source == load_config(["source=openverse"]).source


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["source=[openverse,comons]"], "no such source. Did you mean 'commons'"),
        (["source=[openverse,commons]"], "ingest.contact"),
        (["source=several"], "what a list stands for"),
        (["source=urls"], "needs a list"),
        (["source=commons", "ingest.contact=me"], "e-mail address or a URL"),
        (["ingest.exclude=[abc]"], "16 digits"),
        (["ingest.near_duplicate_bits=16"], "near_duplicate_bits"),
    ],
)
def test_mistakes_in_the_configuration(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(overrides)


def test_torchvision_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a stand-in for the package, whose import takes seconds; the slow test uses the real one."""
    import sys
    import types

    from PIL import Image

    class Tiny:
        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            if not download:
                raise RuntimeError("Dataset not found")
            self.classes, self.targets = ["cat", "dog"], [0, 1, 0]

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (40, 40), (i, 0, 0)), self.targets[i]

    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    datasets.Tiny, datasets.__all__ = Tiny, ["Tiny"]  # type: ignore[attr-defined]
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    node = load_config(["source=torchvision", "source.dataset=Tiny", "source.download=true"]).source
    (source,) = build_sources(node)
    assert source.class_names() == ["cat", "dog"]
    assert [c.url for c in source.candidates("cat")] == ["torchvision:Tiny/train/0", "torchvision:Tiny/train/2"]
    for more, message in (
        (["source.dataset=Tini"], "Did you mean 'Tiny'"),
        (["source.dataset=Tiny"], "source.download=true"),
    ):
        with pytest.raises(UserError, match=message):
            build_sources(load_config(["source=torchvision", *more]).source)


@pytest.mark.slow
def test_torchvision_itself(tmp_path: Path) -> None:
    from tests.test_ingest import ingest
    from tests.test_sources_local import picture, write_folder

    write_folder(tmp_path / "in", {"cat/a.jpg": picture(1), "dog/b.jpg": picture(2)})
    overrides = ["source=torchvision", "source.dataset=ImageFolder", f"source.root={tmp_path / 'in'}"]
    rows = ingest(tmp_path / "out", *overrides)
    assert [r["status"] for r in rows] == ["kept", "kept"]
    assert {p.read_bytes() for p in (tmp_path / "out").glob("*/*.jpg")} == {picture(1), picture(2)}
