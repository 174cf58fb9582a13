"""The background service's process: found, never mistaken, detached, started once, gone with its registry."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from serving_kit import FAST, make_model, put_in_registry, request, running_service

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.registry.store import FolderRegistry
from objrec.serve import main
from objrec.serving import service
from objrec.serving.service import Process
from objrec.serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


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
    with running_service(tmp_path, make_model(tmp_path / "m")) as started:
        assert service.find(tmp_path) == started
        me = Process.of(os.getpid())
        assert me is not None
        stranger = replace(started, pid=me.pid, started=me.started, instance="other")
        service.write_state(tmp_path, stranger)  # our process, and a port where another service answers
        assert service.find(tmp_path) is None
        assert service.stop(tmp_path) is None
        service.write_state(tmp_path, started)
        for damaged in ("", "{}", '{"pid": 1}'):
            service.state_file(tmp_path).write_text(damaged)
            assert service.find(tmp_path) is None
        service.write_state(tmp_path, started)
    assert service.find(tmp_path) is None and not started.process.alive()


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
    FolderRegistry(tmp_path).promote(put_in_registry(tmp_path, make_model(tmp_path / "m")))
    settings = Settings.of(load_config(FAST), registry_dir=str(tmp_path))
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: service.ensure_started(settings), range(3)))
        assert len({s.pid for s in found}) == 1
    finally:
        service.stop(tmp_path)


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
        settings = Settings.of(load_config([*FAST, f"serve.port={port}"]), registry_dir=str(registry))
        with pytest.raises(UserError, match="already in use"):
            service.ensure_started(settings)


def test_a_damaged_model_does_not_start(tmp_path: Path) -> None:
    record = put_in_registry(tmp_path, make_model(tmp_path / "m"))
    FolderRegistry(tmp_path).promote(record)
    with (FolderRegistry(tmp_path).model_dir(record.sha256) / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        service.ensure_started(Settings.of(load_config(FAST), registry_dir=str(tmp_path)))
    assert service.find(tmp_path) is None


def test_the_same_port_after_a_restart_and_state_only_for_the_owner(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    with running_service(tmp_path, model) as one:
        assert service.state_file(tmp_path).stat().st_mode & 0o077 == 0
        assert json.loads(service.state_file(tmp_path).read_text()) == asdict(one)
    with running_service(tmp_path, model) as two:
        assert two.url == one.url and two.pid != one.pid


def test_it_leaves_when_its_registry_is_deleted(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with running_service(root, make_model(tmp_path / "m")) as started:
        root.rename(tmp_path / "deleted")  # at once: the service may be writing its log into it
        deadline = time.monotonic() + 60
        while started.process.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not started.process.alive()
