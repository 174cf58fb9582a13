"""The background service's process: found, never mistaken, detached, started once, gone with its registry."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import FAST, make_model, put_in_registry, request, running_service

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.deployment import service
from objrec.deployment.service import Process, Service
from objrec.model_registry.store import FolderRegistry, claim_registry
from objrec.serve import main
from objrec.serving.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_is_never_mistaken_for_another() -> None:
    me = Process.of(os.getpid())
    assert me is not None and me.alive()
    stranger = replace(me, started="another time")
    assert not stranger.alive() and not stranger.signal(9)  # we would not be here
    done = subprocess.Popen([sys.executable, "-c", ""])
    child = Process.of(done.pid)
    done.wait()
    assert child is not None and not child.alive() and not child.signal(15)


def test_a_state_file_that_names_a_stranger_is_not_believed(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    with running_service(registry, make_model(tmp_path / "m")) as started:
        assert service.find(registry) == started
        me = Process.of(os.getpid())
        assert me is not None
        stranger = replace(started, pid=me.pid, started=me.started, instance="other")
        service.write_state(registry, stranger)  # our process, and a port where another service answers
        assert service.find(registry) is None
        assert service.stop(registry) is None
        service.write_state(registry, started)
        for damaged in ("", "{}", '{"pid": 1}'):
            service.state_file(registry).write_text(damaged)
            assert service.find(registry) is None
        service.write_state(registry, started)
    assert service.find(registry) is None and not started.process.alive()


def ours(**changes: Any) -> Service:
    """A state of this very process, at a port where nobody listens."""
    me = Process.of(os.getpid())
    assert me is not None
    state = Service(pid=me.pid, started=me.started, url="http://127.0.0.1:9", instance="i", token="t", settings="s")
    return replace(state, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"url": u} for u in ("http://127.0.0.1:99999", "http://127.0.0.1:0", "http://127.0.0.1", "http://:80")],
        *[
            {"url": u}
            for u in (5, None, "", "http://[::1", "http://x:abc", "ftp://x:80", "http://x y:80", "http://é:80")
        ],
        *[{"token": t} for t in ("a\nb", "é", 5, None)],
        *[{"pid": p} for p in ("1", None, True, 1.5)],
        {"started": 5},
        {"instance": None},
        {"settings": []},
    ],
)
def test_a_state_file_that_was_edited_to_nonsense_names_no_service(tmp_path: Path, changes: dict[str, Any]) -> None:
    service.write_state(tmp_path, ours())
    assert service.read_state(tmp_path) == ours() and service.is_named(tmp_path, "i")
    service.write_state(tmp_path, ours(**changes))
    assert service.read_state(tmp_path) is None and service.find(tmp_path) is None
    assert not service.is_named(tmp_path, "i")


def test_a_state_file_of_brackets_names_no_service(tmp_path: Path) -> None:
    service.state_file(tmp_path).write_text("[" * 100_000)
    assert service.find(tmp_path) is None


def test_a_host_that_cannot_be_one_does_not_answer() -> None:
    with pytest.raises(OSError, match="not an HTTP answer"):
        service.call("http://a..b:80", "GET", "/version", timeout=1)


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """A process that does not obey SIGTERM, reaped when it ends."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    process = Process.of(child.pid)
    assert process is not None
    try:
        yield process
    finally:
        child.kill()
        child.communicate()


Say = Callable[[str, int], tuple[str, str]]


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    claim_registry(tmp_path)  # before a test writes a state into it

    def run(action: str, status: int) -> tuple[str, str]:
        assert main([f"action={action}", f"registry_dir={tmp_path}"]) == status
        return capsys.readouterr()

    return run


def test_a_service_that_hangs_is_told_of_and_killed(
    tmp_path: Path, say: Say, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", 0.2)
    service.write_state(tmp_path, ours(**asdict(sleeper)))  # nobody listens at its port
    told = json.loads(say("status", 1)[0])
    assert told["running"] and told["problem"].startswith(f"running, but does not answer (pid {sleeper.pid})")
    out, err = say("stop", 0)
    assert out.startswith("stopped") and "so it was killed" in err and not sleeper.alive()
    assert json.loads(say("status", 1)[0]) == {"running": False}


def test_a_service_that_answers_is_not_killed(
    tmp_path: Path, say: Say, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(service, "call", lambda *_, **__: (200, {"instance": "i"}))
    service.write_state(tmp_path, ours(**asdict(sleeper)))
    assert "try again" in say("stop", 2)[1] and sleeper.alive()


def test_the_status_of_a_service_that_ends_meanwhile(
    tmp_path: Path, say: Say, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> None:
        sleeper.signal(9)
        while sleeper.alive():
            time.sleep(0.01)
        raise ConnectionRefusedError

    monkeypatch.setattr(service, "call", end)
    service.write_state(tmp_path, ours(**asdict(sleeper)))
    assert json.loads(say("status", 1)[0]) == {"running": False}


def test_a_service_of_another_user_is_left_to_them(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state may be readable or not. Not by modes: root may do anything."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    service.write_state(tmp_path, ours())
    with monkeypatch.context() as patch:
        patch.setattr("signal.pidfd_send_signal", refuse)
        assert "belongs to another user" in say("stop", 2)[1]
    monkeypatch.setattr(service, "state_file", lambda _: Locked(tmp_path / "service.json"))
    assert "belongs to another user" in say("stop", 2)[1]
    assert "belongs to another user" in say("status", 2)[1]


class Locked(type(Path())):  # type: ignore[misc]
    """A file that may not be opened."""

    def open(self, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")


def test_the_command_that_starts_it_ends_and_lets_go(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    FolderRegistry(registry).promote(put_in_registry(registry, make_model(tmp_path / "m")))
    command = [sys.executable, "-m", "objrec.serve", f"registry_dir={registry}", *FAST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    inherited, ours = os.pipe()
    os.set_inheritable(ours, True)
    try:
        # capture_output waits until every holder of the pipes has closed them: a service that kept one would hang here
        done = subprocess.run(
            [*command, "action=start"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment,
            pass_fds=[ours],
            check=True,
        )
        url = done.stdout.strip()
        found = service.find(registry)
        assert found is not None and url == found.url and request(url, "GET", "/readyz").status == 200
        os.close(ours)
        assert os.read(inherited, 1) == b""  # the end: nobody else holds it
        stat = Path(f"/proc/{found.pid}/stat").read_text().rpartition(")")[2].split()
        parent, group, session, terminal = stat[1:5]
        assert (
            int(session) != os.getsid(0)
            and int(group) != os.getpgrp()
            and terminal == "0"
            and int(parent) != os.getpid()
        )
        again = subprocess.run([*command, "action=start"], capture_output=True, text=True, env=environment, check=True)
        assert again.stdout.strip() == url
    finally:
        os.close(inherited)
        assert main(["action=stop", f"registry_dir={registry}"]) == 0
    assert main(["action=status", f"registry_dir={registry}"]) == 1


def test_two_starters_at_once_start_one_service(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    FolderRegistry(registry).promote(put_in_registry(registry, make_model(tmp_path / "m")))
    settings = ServiceSettings.of(load_config(FAST), registry_dir=str(registry))
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: service.ensure_started(settings), range(3)))
        assert len({s.pid for s in found}) == 1
    finally:
        service.stop(registry)


def test_a_port_in_use_and_a_missing_model_are_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "registry"
    assert main(["action=start", f"registry_dir={registry}"]) == 2
    assert "run python -m objrec.pipeline first" in capsys.readouterr().err
    FolderRegistry(registry).promote(put_in_registry(registry, make_model(tmp_path / "m")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = ServiceSettings.of(load_config([*FAST, f"serve.port={port}"]), registry_dir=str(registry))
        with pytest.raises(UserError, match="already in use"):
            service.ensure_started(settings)


def test_a_damaged_model_does_not_start(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    record = put_in_registry(registry, make_model(tmp_path / "m"))
    FolderRegistry(registry).promote(record)
    with (FolderRegistry(registry).model_dir(record.sha256) / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        service.ensure_started(ServiceSettings.of(load_config(FAST), registry_dir=str(registry)))
    assert service.find(registry) is None


def test_the_same_port_after_a_restart_and_state_only_for_the_owner(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    model = make_model(tmp_path / "m")
    with running_service(registry, model) as one:
        assert service.state_file(registry).stat().st_mode & 0o077 == 0
        assert json.loads(service.state_file(registry).read_text()) == asdict(one)
    with running_service(registry, model) as two:
        assert two.url == one.url and two.pid != one.pid


def test_it_leaves_when_its_registry_is_deleted(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with running_service(root, make_model(tmp_path / "m")) as started:
        root.rename(tmp_path / "deleted")  # at once: the service may be writing its log into it
        deadline = time.monotonic() + 60
        while started.process.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not started.process.alive()


def test_elsewhere_than_on_linux_the_background_service_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.Process, "of", classmethod(lambda _cls, _pid: None))  # as where there is no /proc
    settings = ServiceSettings.of(load_config([]), registry_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"needs Linux .* deploy\.start=false"):
        service.ensure_started(settings)
    assert list(tmp_path.iterdir()) == []
