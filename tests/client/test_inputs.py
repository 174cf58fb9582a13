"""``predict.py`` and odd files, names and streams: each costs its image at most."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from objrec import predict
from objrec.client import inputs as sources

ROOT = Path(__file__).resolve().parents[2]
JPEG = b"\xff\xd8\xff" + bytes(200)


def found(*names: Any, stdin: bytes | None = b"") -> list[sources.ImageInput]:
    text = None if stdin is None else io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))  # type: ignore[arg-type]
    return list(sources.images_of([str(name) for name in names], text))


def become_of(*names: Any, stdin: bytes = b"") -> dict[str, str | None]:
    """Return name -> error of images whose bytes only are read."""
    results = predict.label(found(*names, stdin=stdin), lambda data: ([("a", 1.0)], "v", False), workers=2)
    return {Path(result.name).name: result.error for result in results}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)


# --- what is no file


@pytest.mark.timeout(20)
def test_pipes_devices_sockets_and_huge_files_in_a_folder_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(100_000_000_000)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.jpg"))  # the length of its address is limited
        for name in (tmp_path, tmp_path / "*.jpg"):
            errors = become_of(name)
            assert errors.pop("socket.jpg")
            assert errors == {
                "a.jpg": None,
                "fifo.jpg": "not a regular file",
                "zero.jpg": "not a regular file",
                "sparse.jpg": "larger than 50000000 bytes",
            }
    listed = "\n".join(str(tmp_path / name) for name in ("fifo.jpg", "zero.jpg"))
    assert set(become_of("-", stdin=listed.encode()).values()) == {"not a regular file"}


def test_an_image_of_the_largest_size_is_taken(tmp_path: Path, quick: None) -> None:
    for size in (1000, 1001):
        (tmp_path / f"{size}.jpg").write_bytes(bytes(size))
    assert become_of(tmp_path) == {"1000.jpg": None, "1001.jpg": "larger than 1000 bytes"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("size", "error"), [(1000, None), (1001, "larger than 1000 bytes")])
def test_a_pipe_named_directly_is_read(tmp_path: Path, quick: None, size: int, error: str | None) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[bytes(size)])
    writer.start()
    assert become_of(tmp_path / "pipe") == {"pipe": error}
    writer.join()


@pytest.mark.timeout(20)
def test_a_pipe_without_a_writer_is_an_error_and_a_slow_writer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PATIENCE", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert become_of(pipe) == {"pipe": "a pipe that nobody wrote to for 0.2 s"}

    def write() -> None:
        with pipe.open("wb") as file:
            time.sleep(0.5)
            file.write(JPEG)

    writer = threading.Thread(target=write)
    writer.start()
    assert sources.read(sources.ImageInput(str(pipe), pipe=True)) == JPEG
    writer.join()


def test_standard_input_is_bounded(quick: None) -> None:
    assert become_of("-", stdin=JPEG + bytes(1000)) == {"stdin": "larger than 1000 bytes"}
    assert become_of("-", stdin=JPEG) == {"stdin": None}
    errors = become_of("-", stdin=b"x" * 200_000)
    assert list(errors) == ["stdin"] and "neither an image nor names" in (errors["stdin"] or "")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("first", [1, 3, 15, 16, 17])
def test_an_image_that_comes_in_pieces_is_no_list_of_names(first: int) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        os.write(writing, JPEG[:first])
        time.sleep(0.1)
        os.write(writing, JPEG[first:])
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading) as stdin:
        (image,) = sources.images_of(["-"], stdin)
    writer.join()
    assert image.data == JPEG


@pytest.mark.parametrize(
    "names", [["a"], ["a.jpg", "b.jpg"], ["0123456789abcde", "b"], ["0123456789abcdef", "b", "", "-"]]
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_names_on_stdin_are_read_whole(names: list[str], line_break: str) -> None:
    for end in ("", line_break):
        listed = found("-", stdin=(line_break.join(names) + end).encode())
        assert [image.name for image in listed] == [name for name in names if name not in ("", "-")]


# --- names


def test_odd_names_cost_themselves_only(workdir: Path) -> None:
    Path("a.jpg").write_bytes(JPEG)
    long = "n" * 300
    expected = {long: "File name too long", "a.jpg": None}
    assert become_of(long, "a.jpg") == expected
    assert become_of("-", stdin=f"{long}\na.jpg\n".encode()) == expected
    assert become_of("zero\0byte", "zero\0byte/*", "a.jpg")["a.jpg"] is None


def test_a_folder_is_listed_by_the_rule_for_all_folders(tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0" + bytes(40)
    for name in ("a.jfif", "b.jpe", "c", "sub/d.crdownload", "sub/e.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    for name in ("notes.txt", ".hidden.jpg", ".git/f.jpg", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text" if name == "notes.txt" else jpeg)
    names = [str(Path(i.name).relative_to(tmp_path)) for i in found(tmp_path)]
    assert sorted(names) == ["a.jfif", "b.jpe", "c", "sub/d.crdownload", "sub/e.JPG"]


def test_a_folder_that_may_not_be_entered(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refuse(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if "closed/" in os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", refuse)
    assert become_of("closed/a.jpg", "none.jpg") == {
        "a.jpg": "Permission denied",
        "none.jpg": "no such file or folder",
    }
    Path("closed").mkdir()
    Path("closed/a.jpg").write_bytes(JPEG)
    Path("open.jpg").write_bytes(JPEG)
    Path("p").symlink_to(".")
    assert become_of("*/*.jpg")["open.jpg"] is None


def test_matches_are_files_and_not_patterns_or_stdin(workdir: Path) -> None:
    Path("*").symlink_to("nowhere")
    Path("-").write_bytes(JPEG)
    Path("[x].jpg").write_bytes(JPEG)
    assert become_of("*", stdin=b"c.jpg\n") == {"*": "No such file or directory", "-": None, "[x].jpg": None}


def test_a_pattern_gives_no_file_twice(workdir: Path) -> None:
    for name in ("d/a.jpg", "d/e/b.jpg", "d/e/f/c.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(JPEG)
    Path("d/link.jpg").symlink_to("a.jpg")  # another name is another image
    Path("d/e/circle").symlink_to("..")
    for pattern in ("d/**", "./d/**", "d/*", str(Path("d/**").absolute())):
        names = [Path(image.name).name for image in found(pattern)]
        assert sorted(names) == ["a.jpg", "b.jpg", "c.jpg", "link.jpg"]
    assert len(found("d/a.jpg", "d/a.jpg")) == 2  # named twice, wanted twice


def test_a_subfolder_that_cannot_be_read_is_told(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d/closed").mkdir(parents=True)
    Path("d/a.jpg").write_bytes(JPEG)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert become_of("d") == {"a.jpg": None, "closed": "Permission denied"}
    assert become_of("d/closed") == {"closed": "Permission denied"}


# --- what is printed


NASTY = ["=1+1.jpg", "-x.jpg", "@a.jpg", "+b.jpg", "\x1b[31mred\n.jpg"]


@pytest.fixture
def anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is an image."""
    answer: predict.Classify = lambda data: ([("=cmd", 0.75), ("b\x07", 0.25)], "v", False)  # noqa: E731
    monkeypatch.setattr(predict, "_local", lambda options: (answer, 1))


def test_tables_run_nothing_and_lines_carry_no_escapes(
    workdir: Path, anything: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NASTY:
        Path(name).write_bytes(JPEG)
    assert predict.main(["./" + "*", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["label"] for row in rows} == {"'=cmd"} and rows[0]["probability"] == "0.75"
    assert predict.main(["*.jpg", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["image"] for row in rows} == {*(f"'{name}" for name in NASTY[:4]), r"\x1b[31mred\n.jpg"}
    assert {row["others"] for row in rows} == {r'{"b\u0007": 0.25}'}
    assert predict.main(["*.jpg", "none\x1b"]) == 1
    out, said = capsys.readouterr()
    assert len(out.splitlines()) == 5 and "\x1b" not in out + said and "\x07" not in out
    assert r"\x1b[31mred\n.jpg  =cmd 75.0 %  b\x07 25.0 %" in out and r"none\x1b: no such file" in said


def test_names_on_stdin_may_end_with_a_zero_byte(
    workdir: Path, anything: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NASTY:
        Path(name).write_bytes(JPEG)
    names = b"".join(name.encode() + b"\0" for name in NASTY)
    for end in (b"\0", b""):  # find ends the last name too
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names.removesuffix(b"\0") + end)))
        assert predict.main(["-0", "--json"]) == 0
        said = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
        assert said == list(NASTY)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a" * 200_000)))
    assert predict.main(["-0"]) == 1
    assert "zero byte" in capsys.readouterr().err


# --- streams, in processes of their own

PROGRAM = """
import sys
from objrec import predict
predict._local = lambda options: ((lambda data: ([("label\\udcff", 1.0)], "v", False)), 1)
sys.exit(predict.main(sys.argv[1:]))
"""


def shell(redirected: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``PREDICT`` is the program."""
    line = redirected.replace("PREDICT", '"$0" -c "$1"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, PROGRAM],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "status", "out", "said"),
    [
        ("PREDICT a.jpg <&-", 0, "a.jpg  label", ""),
        ("PREDICT a.jpg - <&-", 1, "a.jpg  label", "stdin: is closed"),
        ("PREDICT a.jpg --csv >&-", 2, "", "error: standard output is closed"),
        ("PREDICT a.jpg none.jpg 2>&-", 1, "a.jpg  label", ""),
        ("PREDICT a.jpg >/dev/full", 2, "", "error: the results cannot be written: No space left on device"),
        ("PREDICT a.jpg --csv >/dev/full", 2, "", "error: the results cannot be written: No space left on device"),
        ("PREDICT a.jpg none.jpg 2>/dev/full", None, "a.jpg  label", ""),
        ("PREDICT <(cat a.jpg)", 0, "/dev/fd/", ""),
        ("PREDICT $'\\xff.jpg'", 0, "\\udcff.jpg  label\\udcff 100.0 %", ""),
        ("PREDICT $'\\xff.jpg' --csv", 0, "\\udcff.jpg,label\\udcff,1.0,,", ""),
    ],
)
def test_closed_full_and_strict_streams(line: str, status: int | None, out: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(JPEG)
    done = shell(line, tmp_path)
    assert done.returncode == status or (status is None and done.returncode > 0)
    assert out in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (1 if said else 0) + (status == 1 and bool(said))


def _image_in(connection: socket.socket) -> bytes:
    heard = b""
    while b"\r\n\r\nimage " not in heard[:-1]:
        heard += connection.recv(65536)
    return heard.partition(b"\r\n\r\n")[2]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("status", "message"), [(130, "interrupted\n"), (2, "error: ")], ids=["interrupt", "error"])
def test_an_endpoint_that_hangs_holds_up_no_end(status: int, message: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"image " + name.encode())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        program = [sys.executable, str(ROOT / "predict.py"), "a.jpg", "b.jpg", "--endpoint", url]
        with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as started:
            both = [silent.accept()[0] for _ in range(2)]
            asked = {_image_in(connection): connection for connection in both}  # now they wait for their answers
            began = time.monotonic()
            if status == 130:
                started.send_signal(signal.SIGINT)
            else:
                asked[b"image a"].sendall(b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n")
            _, said = started.communicate(timeout=20)
            for connection in both:
                connection.close()
    assert time.monotonic() - began < 5 and started.returncode == status
    assert said.startswith(message) and said.count("\n") == 1
