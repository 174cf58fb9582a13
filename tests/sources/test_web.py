"""The clients of the image services, each against its wire format, paging, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_server import BadServer, whole
from helpers.downloads import LIMITS

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.ingest.api import StoredApi
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate, SourceStopped
from objrec.sources.build import build_sources, nodes_of
from objrec.sources.licenses import code_of, url_of
from objrec.sources.query import base_of
from objrec.sources.urls import UrlsSource
from objrec.web.download import Downloader


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
        store = WebStore(tmp_path / "store", limits="")
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


def odd(value: Any) -> dict[str, Any]:
    """An answer of each service with ``value`` wherever something else belongs."""
    keys = ("results", "page_count", "query", "continue", "value", "totalEstimatedMatches", "nextOffset", "error")
    return dict.fromkeys(keys, value)


ODD_ANSWERS: list[Any] = [
    *map(odd, (7, -1.5, "text", True, [3], {"pages": 7}, {"pages": {"1": {}}}, {"pages": [{"imageinfo": {"a": 1}}]})),
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
@pytest.mark.parametrize("value", [7, 1e400, True, [], {}, {"value": []}, "text", [{"value": "x"}]])
def test_fields_of_another_type_are_as_good_as_none(server: BadServer, tmp_path: Path, source: str, value: Any) -> None:
    fields = {
        "openverse": ["title", "foreign_landing_url", "creator", "license", "license_version", "license_url", "width"],
        "commons": ["user", "width", "thumbwidth", "thumbheight", "descriptionurl", "extmetadata"],
        "bing": [],
    }
    server.catalog["cat"] = [{"path": "/good/1.jpg", **dict.fromkeys(fields[source], value)}]
    for found in offers(server, source, tmp_path):
        for name in ("title", "license", "creator", "landing_page", "license_url"):
            assert isinstance(getattr(found, name), str | None), name
        assert type(found.width) in (int, type(None))


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


BUSY = whole(b"", "Retry-After: 1", status=429)
LAG = whole(json.dumps({"error": {"code": "maxlag", "info": "lagged"}}).encode(), "Retry-After: 1")


@pytest.mark.parametrize(
    "source, answer", [("openverse", BUSY), ("bing", BUSY), ("commons", LAG)], ids=["openverse", "bing", "commons"]
)
def test_a_busy_service_is_waited_for_as_it_asks_and_not_by_counting(
    server: BadServer, tmp_path: Path, source: str, answer: bytes
) -> None:
    server.offer("cat", ["/good/1.jpg"])
    server.fault = lambda path, query: answer if len(server.calls) <= 4 else None
    started = time.monotonic()
    assert len(offers(server, source, tmp_path)) == 1, "four refusals and 4 s are within max_wait"
    assert time.monotonic() - started > 3.9 and len(server.calls) in (5, 6)


def busy(source: str, seconds: int, *headers: str) -> bytes:
    if source == "commons":
        body = json.dumps({"error": {"code": "maxlag", "info": "lagged"}}).encode()
        return whole(body, f"Retry-After: {seconds}", *headers)
    return whole(b"", f"Retry-After: {seconds}", *headers, status=429)


@pytest.mark.parametrize("source", SERVICES)
def test_a_service_that_stays_busy_is_left_with_the_truth(server: BadServer, tmp_path: Path, source: str) -> None:
    server.fault = lambda path, query: busy(source, 2)
    with pytest.raises(SourceStopped, match=r"still busy after 4 s of waiting, and it asks to wait 2 s more") as stop:
        offers(server, source, tmp_path)
    assert len(server.calls) == 3 and "used up" not in str(stop.value)
    server.fault = lambda path, query: busy(source, 3600)
    with pytest.raises(SourceStopped, match=r"after 0 s of waiting, and it asks to wait 3600 s more"):
        offers(server, source, tmp_path / "long")
    assert len(server.calls) == 4


def test_a_used_up_quota_is_called_so_only_where_the_service_says_it(server: BadServer, tmp_path: Path) -> None:
    server.fault = lambda path, query: busy("openverse", 3600, "X-RateLimit-Available-anon_sustained: 0")
    with pytest.raises(SourceStopped, match="quota of a day is used up"):
        offers(server, "openverse", tmp_path)


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


LONG = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "by" + "-nc" * LONG + "x",
        "<" * LONG,
        "<a" * LONG,
        "&#" + "9" * LONG + ";",
        "&" * LONG,
        " " * LONG,
        "attribution" * LONG,
        "licenses/" * LONG,
    ],
)
def test_no_text_of_a_service_takes_long(server: BadServer, tmp_path: Path, text: str) -> None:
    """Patterns that backtrack take minutes for such texts, in the thread that other classes wait for."""
    names = ("LicenseShortName", "License", "LicenseUrl", "Artist", "Credit")
    metadata = {n: {"value": text[:30_000]} for n in names}
    server.catalog["cat"] = [{"path": "/good/1.jpg", "extmetadata": metadata}]
    started = time.monotonic()
    assert len(offers(server, "commons", tmp_path)) == 1
    code_of(text)
    assert time.monotonic() - started < 5


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
        ("a.jsonl", "[" * 100_000, "row 1 cannot be read"),
        ("a.jsonl", '{"url": ' + "1" * 10_000 + "}", "row 1 cannot be read"),
        ("a.csv", f"url,class\nhttp://x/1,{'x' * 300}\n", "cannot be the name of a folder"),
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


TABLE = "URL;Class;Creator\r\nhttp://x/1.jpg?a=1,2;cat;Zo\u00eb\r\nhttp://x/2.jpg;dog;\r\n"


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.csv", TABLE.encode()),
        ("a.CSV", TABLE.encode("utf-8-sig")),
        ("a.csv", TABLE.encode("utf-16")),
        ("a.csv", b"\xfe\xff" + TABLE.encode("utf-16-be")),
        ("a.csv", TABLE.encode("cp1252")),
        ("a.csv", b"sep=;\r\n" + TABLE.encode()),
        ("a.csv", TABLE.replace(";", "\t").encode("utf-16")),  # what Excel calls Unicode text
        ("a.tsv", TABLE.replace(";", "\t").encode()),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    source = UrlsSource(path=tmp_path / name)
    (cat,) = source.candidates("cat")
    assert (cat.url, cat.creator) == ("http://x/1.jpg?a=1,2", "Zo\u00eb")
    assert source.class_names() == ["cat", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_as_scripts_write_them(tmp_path: Path, encoding: str) -> None:
    rows = [{"URL": "http://x/1", "Label": "cat"}, {"Image_URL": "http://x/2", "CLASS": "dog", "License": "CC0"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding=encoding)
    source = UrlsSource(path=tmp_path / "a.jsonl")
    assert source.class_names() == ["cat", "dog"]
    assert [c.license for c in source.candidates("dog")] == ["cc0"]


def test_half_a_surrogate_pair_is_no_text(server: BadServer, tmp_path: Path) -> None:
    """Titles are cut off in the middle of an emoji; no file and no database can hold the half."""
    (tmp_path / "a.jsonl").write_text('{"url": "http://x/\\ud83d", "class": "v0", "title": "\\uD83D\\uDE00 \\uD83D"}')
    (found,) = UrlsSource(path=tmp_path / "a.jsonl").candidates("v0")
    assert (found.url, found.title) == ("http://x/?", "\U0001f600 ?")
    server.catalog["cat"] = [{"path": "/good/1.jpg", "title": "cut \ud83d"}]
    assert [c.title for c in offers(server, "openverse", tmp_path)] == ["cut ?"]


def test_one_bad_row_of_many_costs_that_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"url": "http://x/1", "class": "cat"}', "{broken", '{"url": "", "class": "cat"}', "[1]"]
    lines += ['{"url": "http://x/2", "class": "a/b"}', '{"url": null, "class": "dog"}', '{"url": "http://x/3"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = UrlsSource(path=tmp_path / "a.jsonl")
    assert source.class_names() == ["cat"]
    good, bad = source.candidates("cat")
    assert good.problem is None and bad.url == "a.jsonl#row 3" and "no 'url'" in (bad.problem or "")
    said = capsys.readouterr().err
    assert "5 rows are left out: row 2 cannot be read" in said and "row 4 is no object" in said and "2 more" in said


@pytest.mark.parametrize(
    "endpoint", ["", "/", "/v1", "/v1/images", "/v1/images/", "/v1/images/?q=cat", "/w/api.php", "/v7.0/images/search"]
)
def test_the_full_address_of_an_api_is_an_endpoint(server: BadServer, tmp_path: Path, endpoint: str) -> None:
    source = "bing" if "v7" in endpoint else "commons" if "/w/" in endpoint else "openverse"
    server.offer("cat", ["/good/1.jpg"])
    assert len(offers(server, source, tmp_path, f"source.endpoint='{server.url(endpoint)}'")) == 1


def test_an_endpoint_keeps_what_is_not_of_the_api() -> None:
    assert base_of("https://a.org/mirror/v1/images/", "/v1/images/") == "https://a.org/mirror"
    assert base_of("https://a.org/bing", "/v7.0/images/search") == "https://a.org/bing"
    with pytest.raises(UserError, match="should be an http or https URL"):
        base_of("a.org", "/v1/images/")


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
        (["source=several"], "give a list instead"),
        (["source=urls"], "needs a list"),
        (["source=commons", "ingest.contact=me"], "e-mail address or URL"),
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
    from helpers.folders import image, write_folder
    from helpers.ingest import ingest

    write_folder(tmp_path / "in", {"cat/a.jpg": image(1), "dog/b.jpg": image(2)})
    overrides = ["source=torchvision", "source.dataset=ImageFolder", f"source.root={tmp_path / 'in'}"]
    rows = ingest(tmp_path / "out", *overrides)
    assert [r["status"] for r in rows] == ["kept", "kept"]
    assert {p.read_bytes() for p in (tmp_path / "out").glob("*/*.jpg")} == {image(1), image(2)}
