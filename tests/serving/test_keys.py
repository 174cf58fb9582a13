"""Where the endpoint's keys come from, what a request must give, and which child processes see a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from objrec.config.environment import NAMES, child_environment, drop_secrets, mark_secret
from objrec.config.errors import UserError
from objrec.serving.keys import check_key, read_keys
from objrec.serving.request import RequestError

KEY = "OBJREC_SERVE_KEY"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_keys(None) == []
    (tmp_path / "keys").write_text("old\r\n\n  new \n")
    assert read_keys(str(tmp_path / "keys")) == ["old", "new"]
    monkeypatch.setenv(KEY, "one\ntwo")
    assert read_keys(None) == ["one", "two"]
    with pytest.raises(UserError, match="both set"):
        read_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize("content", ["", "\n \n", "hu sh", "hüsh", "hush\x01"])
def test_what_cannot_be_a_key_is_refused_and_not_repeated(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"serve\.key_file holds") as by_file:
        read_keys(str(tmp_path / "keys"))
    monkeypatch.setenv(KEY, content)
    with pytest.raises(UserError, match=f"{KEY} is set, and holds") as by_environment:
        read_keys(None)
    assert not content.strip() or content not in f"{by_file.value}{by_environment.value}"


def test_a_key_file_that_is_none_is_said_in_a_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing-or-the-key-itself", "", "pipe", "nul\0"):
        with pytest.raises(UserError, match=r"serve\.key_file: ") as caught:
            read_keys(str(tmp_path / name))
        assert "itself" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-api-key": b"new"},
        {b"x-api-key": b"old"},
        {b"authorization": b"Bearer old"},
        {b"authorization": b"bearer new"},
        {b"authorization": b"BEARER   new "},
    ],
)
def test_either_key_in_either_header_is_taken(headers: dict[bytes, bytes]) -> None:
    check_key(["old", "new"], headers)


@pytest.mark.parametrize(
    "headers", [{}, {b"x-api-key": b"ne"}, {b"authorization": b"new"}, {b"authorization": b"Basic new"}]
)
def test_anything_else_is_refused(headers: dict[bytes, bytes]) -> None:
    check_key([], headers)
    with pytest.raises(RequestError, match="401"):
        check_key(["old", "new"], headers)


def test_children_get_no_secret_that_they_do_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "FROM_A_VAULT"):
        monkeypatch.setenv(name, "hush")
    mark_secret("FROM_A_VAULT")
    program = "import os; print([k for k, v in os.environ.items() if v == 'hush'])"

    def seen(env: dict[str, str]) -> str:
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert seen(child_environment()) == "[]"
    assert seen(child_environment(keep=("OBJREC_KEY",))) == "['OBJREC_KEY']"
    drop_secrets(keep=(KEY,))
    assert KEY in os.environ and "OBJREC_KEY" not in os.environ
