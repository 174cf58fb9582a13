"""One download against a server that does everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import cast

import pytest
from helpers.bad_server import BadServer, head, image, whole
from helpers.downloads import LIMITS
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from objrec.images.decode import ImageError
from objrec.ingest.examine import examine
from objrec.web.addresses import PublicResolver, RefusedAddress, check_url, is_public
from objrec.web.coding import Inflater
from objrec.web.download import Downloader, DownloadLimits, redirect_target
from objrec.web.failures import FetchError, retry_after
from objrec.web.robots import Robots, refusal


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as made:
        yield made


def fetch(url: str, limits: DownloadLimits = LIMITS) -> bytes:
    async def go() -> bytes:
        async with Downloader(limits, contact="me@example.org", host_limits={}) as downloader:
            return await downloader.fetch(url)

    return asyncio.run(go())


def fetch_status(url: str, limits: DownloadLimits = LIMITS) -> str:
    """The status that an image would get."""
    try:
        examine(fetch(url, limits), max_pixels=50_000_000, min_size=32)
    except (FetchError, ImageError) as error:
        return error.status
    return "ok"


@pytest.mark.parametrize(
    "behaviour, status, most_hits",
    [
        ("good", "ok", 1),
        ("404", "http_404", 1),
        ("403", "http_403", 1),
        ("410", "http_410", 1),
        ("500", "http_500", 3),
        ("recovers", "ok", 2),
        ("busy", "ok", 2),
        ("busydate", "ok", 2),
        ("busybare", "ok", 2),
        ("busyjunk", "ok", 2),
        ("busyyear", "http_429", 1),
        ("busyforever", "http_429", 3),
        ("truncated", "truncated", 3),
        ("cutimage", "corrupt", 1),
        ("shortlength", "protocol", 1),
        ("nolength", "ok", 1),
        ("badlength", "protocol", 1),
        ("endless", "too_large", 1),
        ("declaredlarge", "too_large", 1),
        ("gzip", "ok", 1),
        ("gzipbomb", "too_large", 1),
        ("html", "unsupported", 1),
        ("empty", "corrupt", 1),
        ("junk", "protocol", 1),
        ("loop", "redirect", 6),
        ("moved", "ok", 1),
        ("nowhere", "redirect", 1),
        ("tofile", "refused_address", 1),
        ("optout", "robots", 1),
        ("optother", "ok", 1),
        ("bomb", "too_large", 1),
        ("small", "too_small", 1),
        ("cmyk", "ok", 1),
        ("animated", "ok", 1),
    ],
)
def test_each_misbehaviour_has_its_word(server: BadServer, behaviour: str, status: str, most_hits: int) -> None:
    started = time.monotonic()
    path = f"/{behaviour}/7.jpg"
    assert fetch_status(server.url(path)) == status
    assert time.monotonic() - started < 6
    assert 1 <= server.hits[path] <= most_hits


@pytest.mark.parametrize("behaviour", ["slowhead", "slowbody", "silent"])
def test_slow_servers_are_given_up_in_time(server: BadServer, behaviour: str) -> None:
    started = time.monotonic()
    assert fetch_status(server.url(f"/{behaviour}/1.jpg"), replace(LIMITS, timeout=0.6)) == "timeout"
    assert time.monotonic() - started < 2


def test_a_closed_port_and_an_unknown_name() -> None:
    assert fetch_status("http://127.0.0.1:1/a.jpg", replace(LIMITS, retries=0)) == "connection"
    assert fetch_status("http://no-such-host.invalid/a.jpg") in ("dns", "connection")


def test_the_user_agent_says_who_asks(server: BadServer) -> None:
    fetch(server.url("/good/1.jpg"))
    (agent,) = server.agents
    assert agent.startswith("objrec/") and "(me@example.org)" in agent and "aiohttp/" in agent


def test_robots_txt_is_read_once_and_respected(server: BadServer) -> None:
    server.robots = b"User-agent: *\nDisallow: /good/\nAllow: /good/2\n"
    assert fetch_status(server.url("/good/1.jpg")) == "robots"
    assert fetch_status(server.url("/good/2.jpg")) == "ok"
    assert fetch_status(server.url("/good/1.jpg"), replace(LIMITS, robots=False)) == "ok"
    assert server.hits["/robots.txt"] == 2
    assert server.hits["/good/1.jpg"] == 1


DENY = b"User-agent: *\nDisallow: /good/\n"
FAST_FAIL = replace(LIMITS, timeout=1.5, retries=1)


@pytest.mark.parametrize(
    "answers, status",
    [
        ([whole(b"\xef\xbb\xbf" + DENY)], "robots"),
        ([whole(b"# long\n" * 60_000 + DENY)], "robots"),  # more than max_bytes, less than 500 KiB
        ([head(200, length=10**9) + DENY + b"# long\n" * 100_000], "robots"),
        ([head(200, length=10**9) + b"Allow: /\n" * 100_000], "ok"),
        ([whole(DENY, "X-Robots-Tag: noindex")], "robots"),
        ([whole(gzip.compress(DENY), "Content-Encoding: gzip")], "robots"),
        ([whole(b"", status=404)], "ok"),
        ([whole(b"", status=403)], "ok"),
        ([whole(b"", status=500)], "robots"),
        ([whole(b"", status=503)], "robots"),
        ([whole(b"", status=503), whole(b"")], "ok"),
        ([whole(b"", status=503), whole(DENY)], "robots"),
        ([whole(b"", status=429)], "robots"),
        ([b""], "robots"),  # silence
        ([b"no HTTP\r\n\r\n"], "robots"),
        ([head(200, length=1000) + b"cut"], "robots"),
        ([whole(b"", "Location: /robots.txt", status=301), whole(DENY)], "robots"),
        ([whole(b"", "Location: /robots.txt", status=302)], "ok"),  # for ever
    ],
)
def test_robots_txt_that_is_hard_to_get(server: BadServer, answers: list[bytes], status: str) -> None:
    server.robots_answers = answers
    assert fetch_status(server.url("/good/1.jpg"), FAST_FAIL) == status
    assert fetch_status(server.url("/good/1.jpg"), replace(FAST_FAIL, robots=False)) == "ok"


def test_a_host_without_a_readable_robots_txt_is_asked_once_for_all_images(server: BadServer) -> None:
    server.robots_answers = [whole(b"", status=503)]

    async def go() -> list[object]:
        async with Downloader(replace(LIMITS, retries=0), contact=None, host_limits={}) as downloader:
            urls = [server.url(f"/good/{i}.jpg") for i in range(20)]
            return await asyncio.gather(*map(downloader.fetch, urls), return_exceptions=True)

    assert {str(e) for e in asyncio.run(go())} == {
        "robots: robots.txt of 127.0.0.1 could not be read (HTTP 503): that means no"
    }
    assert server.hits == {"/robots.txt": 1}


@pytest.mark.parametrize(
    "number, status",
    [(0, "ok"), (1, "ok"), (2, "ok"), (3, "ok"), (4, "ok"), (5, "ok"), (6, "ok"), (7, "truncated"),
     (8, "unsupported"), (9, "too_large"), (10, "corrupt")],
)  # fmt: skip
def test_content_codings(server: BadServer, number: int, status: str) -> None:
    assert fetch_status(server.url(f"/coded/{number}.jpg"), replace(LIMITS, retries=0)) == status


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_coded_body_in_small_pieces(size: int) -> None:
    data = gzip.compress(b"abc" * 99) + gzip.compress(b"xyz" * 99) + b"padding"
    inflater, found = Inflater("gzip"), b""
    for i in range(0, len(data), size):
        found += inflater.inflate(data[i : i + size], 10**6)
    assert found == b"abc" * 99 + b"xyz" * 99 and inflater.finished


@pytest.mark.parametrize(
    "path, sent",
    [
        ("/good/1.jpg?sig=%7Ea%2fb%2Bc+d&x=%e4", None),
        ("/good/1-%7E%2f/../.jpg", None),
        ("/good/1.jpg?a=b|c{d}^`\\", None),
        ("/good/1.jpg?q=~!$&'()*,;=:@/?", None),
        ("/good/1.jpg?a b#fragment", "/good/1.jpg?a%20b"),
        ("/good/1.jpg?caf\u00e9", "/good/1.jpg?caf%C3%A9"),
    ],
)
def test_urls_are_sent_as_they_were_given(server: BadServer, path: str, sent: str | None) -> None:
    with contextlib.suppress(FetchError):
        fetch(server.url(path), replace(LIMITS, robots=False, retries=0))
    assert server.targets == [sent or path]


def test_an_address_without_a_path() -> None:
    for url, sent in (("http://a.org?x=%7E", "http://a.org/?x=%7E"), ("HTTP://A.org#x", "http://a.org/")):
        assert str(check_url(url, allow_private=False)) == sent
    assert check_url("http://b\u00fccher.example/", allow_private=False).raw_host == "xn--bcher-kva.example"


def test_redirects_are_sent_as_they_were_given() -> None:
    url = URL("http://example.org/a%7Eb/c?d", encoded=True)
    assert redirect_target(url, "/x%7E?y=%2f") == "http://example.org/x%7E?y=%2f"
    assert redirect_target(url, "e%2ff") == "http://example.org/a%7Eb/e%2ff"
    assert redirect_target(url, "//other.org/%7e") == "http://other.org/%7e"


def test_a_request_cannot_be_split(server: BadServer) -> None:
    with contextlib.suppress(FetchError):
        fetch(server.url("/good/1.jpg?a\r\nX-Evil: 1\x00\r\n\r\n"), replace(LIMITS, robots=False, retries=0))
    assert server.targets == ["/good/1.jpg?aX-Evil:%201%00"]


def test_no_more_connections_to_a_host_than_allowed_and_its_pace_is_kept(server: BadServer) -> None:
    server.delay = 0.05

    async def go(limits: DownloadLimits, count: int) -> float:
        started = time.monotonic()
        async with Downloader(limits, contact=None, host_limits={"127.0.0.1": 3}) as downloader:
            await asyncio.gather(*(downloader.fetch(server.url(f"/good/{i}.jpg")) for i in range(count)))
        return time.monotonic() - started

    asyncio.run(go(LIMITS, 20))
    assert server.most_at_once == 3
    server.delay = 0
    assert asyncio.run(go(replace(LIMITS, host_rate=20, robots=False), 11)) >= 0.5


def test_a_service_and_its_images_have_a_pace_each(server: BadServer) -> None:
    """On one host, as where a service serves its thumbnails itself."""
    server.offer("cat", [])

    async def go(rate: float, interval: float, calls: int, images: int) -> float:
        started = time.monotonic()
        limits = replace(LIMITS, host_rate=rate, robots=False)
        async with Downloader(limits, contact=None, host_limits={}) as downloader:
            address = server.url("/v1/images/?q=cat&page=1&page_size=20")
            asked = [downloader.request("GET", address, interval=interval) for _ in range(calls)]
            await asyncio.gather(*asked, *(downloader.fetch(server.url(f"/good/{i}.jpg")) for i in range(images)))
        return time.monotonic() - started

    assert asyncio.run(go(rate=1000, interval=0.5, calls=3, images=40)) < 1.9, "the images wait for the service"
    assert asyncio.run(go(rate=10, interval=0, calls=5, images=11)) >= 1.0, "the service lifts the images' limit"


def test_a_wait_for_a_busy_host_holds_for_all_its_images(server: BadServer) -> None:
    async def go() -> list[bytes]:
        async with Downloader(replace(LIMITS, connections_per_host=1), contact=None, host_limits={}) as downloader:
            paths = [f"/busy/{i}.jpg" for i in range(2)]
            return await asyncio.gather(*(downloader.fetch(server.url(p)) for p in paths))

    started = time.monotonic()
    assert asyncio.run(go()) == [image(i) for i in range(2)]
    assert time.monotonic() - started > 0.9


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,AAAA",
        "http:///a.jpg",
        "not a url",
        "",
        "http://user:secret@example.org/a.jpg",
        "http://127.0.0.1/a.jpg",
        "http://127.1/a.jpg",
        "http://0x7f.0.0.1/a.jpg",
        "http://2130706433/a.jpg",
        "http://10.1.2.3/a.jpg",
        "http://192.168.0.1/",
        "http://169.254.169.254/latest",
        "http://[::1]/a.jpg",
        "http://[::ffff:10.0.0.1]/a.jpg",
        "http://[64:ff9b::a00:1]/a.jpg",
        "http://[fe80::1]/a.jpg",
        "http://0.0.0.0/",
        "http://\x00/",
        "http://..../",
        "http://" + "a" * 5000,
        "http://example.org/" + "a" * 100_000,
        "http://168.63.129.16/",
        "http://[::ffff:168.63.129.16]/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://127\u30020\u30020\u30021/",
    ],
)
def test_urls_that_must_not_be_fetched(url: str) -> None:
    with pytest.raises(RefusedAddress):
        check_url(url, allow_private=False)


def test_public_urls_pass() -> None:
    for url in (
        "https://example.org/a b.jpg",
        "http://1.1.1.1/x",
        "https://[2606:4700::1111]/x?y=1",
        URL("https://a.b"),
    ):
        check_url(url, allow_private=False)
    assert is_public("8.8.8.8") and not is_public("224.0.0.1") and not is_public("nonsense")


PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16
169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.192 192.0.2.1
192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:168.63.129.16 ::ffff:0:127.0.0.1
64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:2::1 2001:10::1 2001:20::1
2001:0:7f00:1::f7f7:f7f7 2001:0:808:808::80ff:fffe 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 2002:a83f:8110::1
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1 3ffe::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fd12:3456::1
fe80::1 fe80::1%eth0 fec0::1 feff::1 ff02::1 4000::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 168.63.129.15 168.63.129.17 169.253.1.1 172.15.1.1
172.32.0.1 192.0.1.1 192.167.1.1 198.17.0.1 198.20.0.1 223.255.255.254 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
2001:200::1 2001:4860:4860::8888 2606:4700:4700::1111 2a00:1450::1
"""


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_stands_for_a_private_address_is_refused(server: BadServer) -> None:
    async def go() -> None:
        await PublicResolver().resolve("localhost", 80)

    with pytest.raises(RefusedAddress, match="localhost stands for"):
        asyncio.run(go())
    private = replace(LIMITS, allow_private_addresses=False)
    assert fetch_status(f"http://localhost:{server.port}/good/1.jpg", private) == "refused_address"
    assert fetch_status(server.url("/good/1.jpg"), private) == "refused_address"
    assert not server.hits


def test_a_redirect_to_a_private_address_is_refused(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import objrec.web.addresses as addresses

    real = addresses.is_public  # let the server itself count as public, and nothing else
    monkeypatch.setattr(addresses, "is_public", lambda a: a == "127.0.0.1" or real(a))
    private = replace(LIMITS, allow_private_addresses=False)
    assert fetch_status(server.url("/good/1.jpg"), private) == "ok"
    assert fetch_status(server.url("/toprivate/1.jpg"), private) == "refused_address"


@pytest.mark.parametrize(
    "value, seconds",
    [("0", 0), ("7", 7), ("-3", 0), ("", None), (None, None), ("soon", None), ("Thu, 99 Foo 2026", None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_a_date() -> None:
    wait = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert wait is not None and 25 < wait <= 31


ROBOTS = """
# a comment
User-agent: otherbot
Disallow: /

User-agent: *
User-agent: somebot
Disallow: /private
Allow: /private/open
Disallow: /*.gif$
Disallow: /q?id=
Sitemap: x
"""


@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/", True),
        ("/a.jpg", True),
        ("/private/a.jpg", False),
        ("/%70rivate/a.jpg", False),
        ("/private/open/a.jpg", True),
        ("/x/y.gif", False),
        ("/x/y.gif?z", True),
        ("/q?id=3", False),
    ],
)
def test_robots_rules(path: str, allowed: bool) -> None:
    assert Robots(ROBOTS).allows(path) is allowed


def test_robots_rules_for_us_replace_those_for_all() -> None:
    rules = Robots("User-agent: *\nDisallow: /\n\nUser-agent: objrec/1.0\nDisallow: /no\nDisallow:")
    assert rules.allows("/yes") and not rules.allows("/no")
    assert Robots("").allows("/x") and Robots("<html>").allows("/x")


@pytest.mark.parametrize(
    "rule, path, allowed",
    [
        ("/*a*a*a*a*a*a*a*a*b$", "/" + "a" * 100_000, True),
        ("/*a*a*a*a*a*a*a*a*b$", "/" + "a" * 100_000 + "b", False),
        ("/" + "*a" * 30_000 + "b$", "/" + "a" * 100_000, True),
        ("/" + "*" * 100_000 + "x", "/" + "a" * 100_000, True),
        ("/" + "*ab" * 20_000 + "$", "/" + "a" * 100_000, True),
    ],
)
def test_no_robots_rule_takes_long(rule: str, path: str, allowed: bool) -> None:
    started = time.monotonic()
    assert Robots(f"User-agent: *\nDisallow: {rule}\n").allows(path) is allowed
    assert time.monotonic() - started < 2


@given(
    pattern=st.text("ab*", max_size=8),
    end=st.sampled_from(["", "$"]),
    path=st.text("ab", max_size=10),
)
def test_robots_wildcards_match_what_a_regular_expression_matches(pattern: str, end: str, path: str) -> None:
    expression = "/" + pattern.replace("*", ".*") + end
    blocked = re.match(expression, f"/{path}") is not None
    assert Robots(f"User-agent: *\nDisallow: /{pattern}{end}\n").allows(f"/{path}") is not blocked


@pytest.mark.parametrize(
    "rule, path, allowed",
    [
        ("/a%2Fb", "/a/b", True),
        ("/a%2Fb", "/a%2fb", False),
        ("/caf\u00e9", "/caf%C3%A9/1", False),
        ("/a%2Ab", "/axxb", True),
        ("/a\u2028b", "/a%E2%80%A8b", False),
        ("/%zz", "/%zz", False),
        ("/$x", "/$x/1", False),
        ("/x$", "/x", False),
        ("/x$", "/xy", True),
        ("/a*a$", "/a", True),
    ],
)
def test_robots_paths_have_one_spelling(rule: str, path: str, allowed: bool) -> None:
    assert Robots(f"\ufeffUser-agent: *\rDisallow: {rule}\r\n").allows(path) is allowed


@pytest.mark.parametrize(
    "values, found",
    [
        ([], None),
        (["all"], None),
        (["noai"], "noai"),
        (["nofollow, NoImageAI"], "noimageai"),
        (["otherbot: noai"], None),
        (["objrec: noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
    ],
)
def test_robots_headers(values: list[str], found: str | None) -> None:
    assert refusal(values) == found


def test_a_client_of_the_endpoint_learns_nothing_of_the_names_behind_it(server: BadServer) -> None:
    from objrec.serving.fetch import fetch as fetch_for_client
    from objrec.serving.request import RequestError
    from objrec.serving.settings import ServiceSettings

    def reason(url: str, *, private: bool = False) -> str:
        settings = SimpleNamespace(timeout=2.0, max_bytes=10**6, allow_private_addresses=private, contact=None)
        with pytest.raises(RequestError) as caught:
            asyncio.run(fetch_for_client(url, cast(ServiceSettings, settings)))
        assert caught.value.status == 422
        return caught.value.reason

    urls = ("http://localhost/", "http://no-such-host.invalid/", "http://10.0.0.1/", "file:///etc/passwd", "nonsense")
    reasons = {reason(url) for url in (*urls, "http://168.63.129.16/", f"http://localhost:{server.port}/good/1.jpg")}
    assert reasons == {"the image could not be fetched: the URL does not lead to a public http or https address"}
    assert "127.0.0.1" not in reason("http://127.0.0.1:1/x.jpg", private=True)
    assert "HTTP 404" in reason(server.url("/404/1.jpg"), private=True)
