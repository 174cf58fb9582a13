"""Ingest from web sources: a whole run against loopback services that misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_server import BadServer, image
from helpers.ingest import check, ingest, tree

from objrec.config.errors import UserError
from objrec.config.load import load_config

FAST = [
    "ingest.allow_private_addresses=true",
    "ingest.host_rate=null",
    "ingest.connections_per_host=16",
    "ingest.contact=me@example.org",
    "ingest.timeout=2",
    "ingest.retries=1",
    "source.interval=0",
]
FAULTS = ("404", "403", "410", "500", "busyforever", "truncated", "cutimage", "endless", "gzipbomb", "html", "empty")
FAULTS += ("junk", "loop", "tofile", "optout", "bomb", "small", "declaredlarge", "badlength", "busyyear")


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as made:
        yield made


def settings(server: BadServer, source: str, *more: str) -> list[str]:
    return [f"source={source}", f"source.endpoint={server.url('')}", *FAST, *more]


def kept(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(r["class"] for r in rows if r["status"] == "kept"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET", "BING_SEARCH_V7_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COGNITIVE_SERVICES_API_KEY", "a-secret")


@pytest.mark.parametrize("source", ["openverse", "commons", "bing"])
def test_exactly_what_was_asked_from_a_third_of_bad_urls(server: BadServer, tmp_path: Path, source: str) -> None:
    pick = random.Random(0)
    names = ["cat", "dog", "ship"]
    for j, name in enumerate(names):
        number = range(1000 * j, 1000 * j + 90)
        server.offer(name, [f"/{pick.choice(FAULTS) if pick.random() < 0.3 else 'good'}/{n}.jpg" for n in number])
    started = time.monotonic()
    overrides = settings(server, source, f"classes.names=[{','.join(names)}]", "ingest.num_images=40")
    rows = ingest(tmp_path / "out", *overrides, "images.max_pixels=50000000")
    assert time.monotonic() - started < 40
    assert kept(rows) == dict.fromkeys(names, 40)
    assert len({r["status"] for r in rows}) > 8
    assert all(r["reason"] for r in rows if r["status"] != "kept")
    for name in names:  # nothing was skipped: the rows are the offers, in order, up to the last that was needed
        urls = [r["url"] for r in rows if r["class"] == name]
        assert urls == [server.url(i["path"]) for i in server.catalog[name]][: len(urls)]
        assert [r["status"] for r in rows if r["class"] == name][-1] == "kept"
    credited = next(r for r in rows if r["status"] == "kept")
    expected = {"openverse": ("by", "Ana <b>"), "commons": ("by-sa", "Ben & Co"), "bing": (None, None)}
    assert (credited["license"], credited["creator"]) == expected[source]


def test_the_classes_end_with_the_same_images_however_slow_the_answers(server: BadServer, tmp_path: Path) -> None:
    """Images that two classes share, duplicates and near-duplicates, in the same data set run after run."""
    server.offer("cat", ["/good/1", "/good/2", "/same/1", "/good/3", "/good/4", "/resized/2", "/good/5", "/good/6"])
    server.offer("dog", ["/good/11", "/same/2", "/good/12", "/good/4", "/good/13", "/404/1", "/resized/3", "/good/14"])
    overrides = settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=4")
    rows = ingest(tmp_path / "a", *overrides)
    statuses = {(r["class"], r["url"].removeprefix(server.url(""))): r["status"] for r in rows}
    assert statuses["cat", "/same/1"] == statuses["dog", "/same/2"] == "ambiguous"
    assert statuses["cat", "/good/4"] == statuses["dog", "/good/4"] == "ambiguous"
    assert statuses["cat", "/resized/2"] == "near_duplicate"
    assert statuses["dog", "/404/1"] == "http_404"
    assert statuses["dog", "/resized/3"] == statuses["cat", "/good/3"] == "ambiguous"
    assert kept(rows) == {"cat": 4, "dog": 4}
    server.delay = 0.02
    ingest(tmp_path / "b", *overrides, f"cache_dir={tmp_path / 'other'}")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_rerun_fetches_nothing_again(server: BadServer, tmp_path: Path) -> None:
    paths = [f"/{'404' if i % 4 == 0 else 'good'}/{i}.jpg" for i in range(60)]
    server.offer("cat", paths)
    server.offer("dog", [p.replace(".", "-dog.") for p in paths[::-1]])
    overrides = settings(server, "openverse", "classes.names=[cat,dog]", "ingest.near_duplicate_bits=null")
    first = ingest(tmp_path / "a", *overrides, "ingest.num_images=8")
    server.hits.clear()
    again = ingest(tmp_path / "b", *overrides, "ingest.num_images=8")
    assert again == first and tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not {p for p in server.hits if p != "/robots.txt"}
    known = {r["url"].removeprefix(server.url("")) for r in first}
    more = ingest(tmp_path / "c", *overrides, "ingest.num_images=12")
    assert not known & set(server.hits), "what was fetched for 8 was fetched again for 12"
    assert kept(more)["cat"] == 12


def test_refresh_keeps_and_adds_and_exclude_takes_down(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", [f"/good/{i}.jpg" for i in range(5)])
    server.offer("dog", [f"/good/{i}.jpg" for i in range(100, 110)])
    overrides = settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=8")
    first = ingest(tmp_path / "a", *overrides)
    assert kept(first) == {"cat": 5, "dog": 8}
    server.offer("cat", [f"/good/{i}.jpg" for i in (50, 3, 51, 1, 52, 53)])  # new ones, another order, some are gone
    assert kept(ingest(tmp_path / "b", *overrides)) == {"cat": 5, "dog": 8}
    server.hits.clear()
    fresh = ingest(tmp_path / "c", *overrides, "ingest.refresh=true")
    order = [r["url"].rpartition("/")[2] for r in fresh if r["class"] == "cat" and r["status"] == "kept"]
    assert order == [f"{i}.jpg" for i in (0, 1, 2, 3, 4, 50, 51, 52)]
    assert not {f"/good/{i}.jpg" for i in range(5)} & set(server.hits)

    taken = next(r for r in fresh if r["url"].endswith("/2.jpg"))
    exclude = f"ingest.exclude=['{server.url('/good/0.jpg')}','{taken['sha256'][:20]}']"
    rows = ingest(tmp_path / "d", *overrides, exclude)
    assert [r["status"] for r in rows if r["class"] == "cat"][:4] == ["excluded", "kept", "excluded", "kept"]
    assert kept(rows) == {"cat": 7, "dog": 8}
    assert taken["sha256"] not in {p.name for p in (tmp_path / "cache/downloads/objects").rglob("*")}


@pytest.mark.parametrize(
    "first, then",
    [
        ("ingest.allow_private_addresses=false", "ingest.allow_private_addresses=true"),
        ("ingest.robots=true", "ingest.robots=false"),
        ("ingest.timeout=0.5", "ingest.timeout=5"),
        ("ingest.max_bytes=500", "ingest.max_bytes=20000000"),
        ("ingest.min_size=500", "ingest.min_size=32"),
    ],
)
def test_an_outcome_holds_only_under_the_settings_that_made_it(
    server: BadServer, tmp_path: Path, first: str, then: str
) -> None:
    server.robots = b"User-agent: *\nDisallow: /good/\n" if "robots" in first else None
    server.delay = 1.0 if "timeout" in first else 0.0
    rows = "".join(f"{server.url(f'/good/{i}.jpg')},{'cat' if i % 2 else 'dog'}\n" for i in range(4))
    (tmp_path / "list.csv").write_text("url,class\n" + rows)
    overrides = ["source=urls", f"source.path={tmp_path / 'list.csv'}", *FAST, "ingest.retries=0"]
    overrides = [o for o in overrides if not o.startswith("source.interval")]
    with pytest.raises(UserError, match="no usable image"):
        ingest(tmp_path / "a", *overrides, first)
    assert kept(ingest(tmp_path / "b", *overrides, then)) == {"cat": 2, "dog": 2}


def test_a_bad_row_of_a_list_is_a_row_with_a_reason(server: BadServer, tmp_path: Path) -> None:
    rows = "".join(f"{server.url(f'/good/{i}.jpg') if i != 2 else ''},{'cat' if i < 4 else 'dog'}\n" for i in range(8))
    (tmp_path / "list.csv").write_text("url,class\n" + rows)
    overrides = ["source=urls", f"source.path={tmp_path / 'list.csv'}", *(o for o in FAST if "source" not in o)]
    found = ingest(tmp_path / "out", *overrides)
    (bad,) = [r for r in found if r["status"] != "kept"]
    assert (bad["class"], bad["status"], bad["url"]) == ("cat", "invalid", "list.csv#row 3")
    assert bad["reason"] == "has no 'url' (columns: url, class)" and kept(found) == {"cat": 3, "dog": 4}


def test_refresh_runs_the_step_again() -> None:
    assert load_config(["ingest.refresh=true", "force=train"]).force == ["train", "ingest"]
    assert load_config(["ingest.refresh=false"]).force == []


def test_a_damaged_image_in_the_store_is_fetched_again(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", ["/good/1", "/good/2"])
    server.offer("dog", ["/good/3", "/good/4"])
    overrides = settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=2")
    rows = ingest(tmp_path / "a", *overrides)
    stored = tmp_path / "cache/downloads/objects" / rows[0]["sha256"][:2] / rows[0]["sha256"]
    stored.unlink()
    stored.write_bytes(b"damaged")
    assert ingest(tmp_path / "b", *overrides) == rows
    assert server.hits["/good/1"] == 2 and server.hits["/good/2"] == 1


def test_several_sources_in_order(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", [f"/good/{i}.jpg" for i in range(3)])
    server.offer("dog", [f"/good/{i}.jpg" for i in range(10, 40)])
    two = settings(server, "[openverse,commons]", "classes.names=[cat,dog]", "ingest.num_images=5")

    def fault(path: str, query: dict[str, str]) -> None:
        if path == "/w/api.php":
            server.offer("cat", [f"/good/{i}.jpg" for i in range(100, 110)])

    server.fault = fault
    rows = ingest(tmp_path / "out", *two)
    assert kept(rows) == {"cat": 5, "dog": 5}
    assert [r["source"] for r in rows if r["class"] == "cat"] == ["openverse"] * 3 + ["commons"] * 2
    assert {r["source"] for r in rows if r["class"] == "dog"} == {"openverse"}


def test_an_image_of_the_wrong_licence_is_not_even_fetched(server: BadServer, tmp_path: Path) -> None:
    for name, start in (("cat", 0), ("dog", 100)):
        server.catalog[name] = [
            {"path": f"/good/{start + i}.jpg", "license": code}
            for i, code in enumerate(["by-nc", "by", None, "cc0", "by"])
        ]
    rows = ingest(tmp_path / "out", *settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=3"))
    assert [r["status"] for r in rows if r["class"] == "cat"] == ["license", "kept", "license", "kept", "kept"]
    assert "/good/0.jpg" not in server.hits
    note = (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert "CC BY" in note and "Ana &lt;b&gt;" in note and "<b>" not in note


def test_a_class_ends_in_time_and_keeps_what_it_has(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", ["/good/1", *(f"/silent/{i}" for i in range(100)), "/good/2"])
    server.offer("dog", [f"/good/{i}" for i in range(10, 20)])
    started = time.monotonic()
    limits = ["ingest.class_timeout=3", "ingest.timeout=2", "ingest.retries=0"]
    overrides = settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=2", *limits)
    rows = ingest(tmp_path / "out", *overrides, "ingest.connections=4")
    assert time.monotonic() - started < 30
    assert kept(rows) == {"cat": 1, "dog": 2}
    assert "class cat stopped" in (tmp_path / "out/ingest_report.html").read_text()


def test_a_class_without_any_image_is_an_error_that_says_why(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", ["/good/1"])
    server.offer("dog", ["/404/1", "/small/2", "/404/3"])
    with pytest.raises(UserError, match=r"class 'dog': no usable image \(2 http_404, 1 too_small\)"):
        ingest(tmp_path / "out", *settings(server, "openverse", "classes.names=[cat,dog]"))


def test_secrets_are_written_nowhere(server: BadServer, tmp_path: Path) -> None:
    server.offer("cat", [f"/good/{i}" for i in range(3)])
    server.offer("dog", [f"/good/{i}" for i in range(10, 13)])
    ingest(tmp_path / "out", *settings(server, "bing", "classes.names=[cat,dog]", "ingest.num_images=2"))
    assert server.headers[0]["ocp-apim-subscription-key"] == "a-secret"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"a-secret" not in path.read_bytes(), path


def step_process(target: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "objrec.steps.ingest", f"raw_data_dir={target}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_and_rerun(server: BadServer, tmp_path: Path, kills: int, seed: int) -> set[str]:
    """Kill, run to the end, compare with an undisturbed run; return what had been kept and was fetched again."""
    pick = random.Random(seed)
    for j, name in enumerate(("cat", "dog")):
        number = range(1000 * j, 1000 * j + 60 * kills)
        server.offer(
            name, [f"/{pick.choice(['404', 'same', 'html']) if n % 4 == 0 else 'good'}/{n}.jpg" for n in number]
        )
    server.delay = 0.03
    overrides = settings(
        server, "openverse", "classes.names=[cat,dog]", f"ingest.num_images={30 * kills}", f"cache_dir={tmp_path / 'c'}"
    )
    overrides.append("ingest.connections=4")
    objects = tmp_path / "c/downloads/objects"
    for _ in range(kills):
        process = step_process(tmp_path / "killed", overrides)
        enough = len(list(objects.glob("*/*"))) + pick.randrange(1, 8)
        while len(list(objects.glob("*/*"))) < enough and process.poll() is None:
            time.sleep(0.005)
        time.sleep(pick.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed").exists()
    whole = {p.name for p in objects.glob("*/*") if hashlib.sha256(p.read_bytes()).hexdigest() == p.name}
    before = server.hits.copy()
    last = step_process(tmp_path / "killed", overrides)
    _, said = last.communicate(timeout=120)
    assert last.returncode == 0, said.decode()
    fetched_by_last = server.hits - before
    rows = ingest(tmp_path / "undisturbed", *overrides, f"cache_dir={tmp_path / 'fresh'}")
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")
    paths = {r["url"].removeprefix(server.url("")) for r in rows if r["sha256"] in whole}
    had_been_kept = {p for p in paths if p.startswith("/good") and before[p]}
    assert len(had_been_kept) >= kills, "it was killed before it kept anything"
    check(tmp_path / "killed", rows)
    return {p for p in had_been_kept if fetched_by_last[p]}


def test_killed_and_run_again_it_is_as_if_undisturbed(server: BadServer, tmp_path: Path) -> None:
    assert kill_and_rerun(server, tmp_path, kills=2, seed=1) == set()


@pytest.mark.slow
def test_killed_ten_times(server: BadServer, tmp_path: Path) -> None:
    assert kill_and_rerun(server, tmp_path, kills=10, seed=2) == set()


@pytest.mark.slow
def test_memory_stays_flat(server: BadServer, tmp_path: Path) -> None:
    """Five times the images, endless bodies and bombs among them, in the same memory."""

    def peak(count: int, start: int) -> int:
        for j, name in enumerate(("cat", "dog")):
            number = range(start + 10_000 * j, start + 10_000 * j + 2 * count)
            server.offer(name, [f"/{'endless' if n % 9 == 0 else 'good'}/{n}.jpg" for n in number])
        script = "import resource,runpy,sys; sys.argv=sys.argv[1:]; sys.path.insert(0,'.')\n"
        script += "try: runpy.run_module('objrec.steps.ingest', run_name='__main__')\n"
        script += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        overrides = settings(server, "openverse", "classes.names=[cat,dog]", f"ingest.num_images={count}")
        overrides += [f"cache_dir={tmp_path / str(count)}", f"raw_data_dir={tmp_path / f'o{count}'}"]
        command = [sys.executable, "-c", script, "ingest", *overrides]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    small, large = peak(150, 0), peak(750, 100_000)
    assert large < 1.25 * small + 20_000, f"{small} kB grew to {large} kB"


def test_the_report_holds_no_markup_from_outside(server: BadServer, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    for name, start in (("cat", 0), ("dog", 100)):
        server.catalog[name] = [
            {
                "path": f"/good/{start + i}.jpg",
                "title": evil,
                "creator": evil,
                "foreign_landing_url": "javascript:alert(1)",
            }
            for i in range(2)
        ]
    rows = ingest(tmp_path / "out", *settings(server, "openverse", "classes.names=[cat,dog]", "ingest.num_images=2"))
    page = (tmp_path / "out/ingest_report.html").read_text()
    assert "<script" not in page and 'href="javascript' not in page and "&lt;script" in page
    assert page.count("data:image/jpeg;base64,") == 4
    credits = (tmp_path / "out/ATTRIBUTION.md").read_text()
    assert "<script" not in credits and "javascript" not in credits
    assert all(json.dumps(r) for r in rows) and image(0)
