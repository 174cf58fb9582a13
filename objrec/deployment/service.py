"""The background service of this machine: started detached, found again, spoken to, stopped. Standard library only.

``registry_dir/service.json`` names it: process id, the process's start time and the machine's boot, so that a number
which the system has since given to another process is never taken for ours, and a random instance name that the service
answers on ``/version``, so that a port which another program has since taken is not either.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from objrec.config.environment import child_environment
from objrec.config.errors import UserError
from objrec.system.files import lock, write_json

if TYPE_CHECKING:
    from objrec.serving.settings import ServiceSettings

START_SECONDS = 120.0
STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that no other can be mistaken for."""

    pid: int
    started: str  # clock ticks since boot, and the boot's id

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process with this number, or None where none is alive."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(pid=pid, started=f"{boot}/{fields[19]}")

    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: int) -> bool:
        """Send a signal to this process and no other; False when it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():  # checked while the handle keeps the number from being another's
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service, as its state file names it."""

    pid: int
    started: str
    url: str
    instance: str
    token: str  # for /control; the file is readable by its owner only
    settings: str  # a digest, to tell whether it runs with the settings at hand

    @property
    def process(self) -> Process:
        return Process(pid=self.pid, started=self.started)

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, dict[str, Any]]:
        return call(self.url, "GET", path, timeout=timeout)

    def control(self, action: str, *, sha256: str = "", timeout: float = START_SECONDS) -> dict[str, Any]:
        """Have the service do something. Raises UserError with its reason when it does not."""
        headers = {"X-Service-Token": self.token}
        try:
            status, answer = call(self.url, "POST", f"/control/{action}?sha256={sha256}", headers, timeout=timeout)
        except OSError as error:
            raise UserError(f"the service at {self.url} did not answer: {error}") from None
        if status != 200:
            raise UserError(f"the service at {self.url} refused: {answer.get('reason', status)}")
        return answer


def call(
    url: str, method: str, path: str, headers: dict[str, str] | None = None, *, timeout: float
) -> tuple[int, dict[str, Any]]:
    """Make a request without proxies; return status and JSON object. Raises OSError."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        content = response.read()
    except (http.client.HTTPException, UnicodeError) as error:  # the latter for a host that cannot be one
        raise OSError(f"not an HTTP answer: {error}") from None
    finally:
        connection.close()
    try:
        data = json.loads(content)
    except ValueError:
        data = {}
    return response.status, data if isinstance(data, dict) else {}


def state_file(registry_dir: Path) -> Path:
    return registry_dir / "service.json"


def log_file(registry_dir: Path) -> Path:
    return registry_dir / "service.log"


def error_file(registry_dir: Path) -> Path:
    """What the service's process says beside its log: why it did not start, or how it crashed."""
    return registry_dir / "service.err"


def read_state(registry_dir: Path) -> Service | None:
    """Return what the state file says, true or not."""
    try:
        return _parse(state_file(registry_dir).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_named(registry_dir: Path, instance: str) -> bool:
    """Return whether the state file names this instance; also where it is there and cannot be read just now."""
    try:
        named = _parse(state_file(registry_dir).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:  # no file descriptor left, say
        return True
    return named is not None and named.instance == instance


def _parse(text: str) -> Service | None:
    """Read a state file's content; None where someone changed it so that no service of ours could be meant."""
    try:
        service = Service(**json.loads(text))
        texts = (service.started, service.url, service.instance, service.token, service.settings)
        if type(service.pid) is not int or not all(isinstance(t, str) and t.isprintable() for t in texts):
            return None
        parts = urlsplit(service.url)
        is_ours = parts.scheme == "http" and parts.hostname and parts.port  # reading the port checks its range
        is_plain = (service.url + service.token).isascii() and " " not in service.url
    except (ValueError, TypeError, RecursionError):
        return None
    return service if is_ours and is_plain else None


def write_state(registry_dir: Path, service: Service) -> None:
    write_json(state_file(registry_dir), asdict(service), mode=0o600)


def find(registry_dir: Path) -> Service | None:
    """Return the service of this registry if it is running."""
    return ask(registry_dir)[0]


def ask(registry_dir: Path) -> tuple[Service | None, dict[str, Any]]:
    """Return the service of this registry if it is running, and what it says of itself: nothing when it hangs."""
    service = read_state(registry_dir)
    if service is None or not service.process.alive():
        return None, {}
    for attempt in range(3):  # a loaded machine may be slow to answer; another program answers something else
        try:
            status, answer = service.get("/version", timeout=5.0 * (attempt + 1))
        except OSError:
            continue
        return (service, answer) if status == 200 and answer.get("instance") == service.instance else (None, {})
    # the process is ours, but hangs: it may be stopped; or it has ended since
    return (service if service.process.alive() else None), {}


def refuse_foreign_service(registry_dir: Path) -> None:
    """Raise UserError where the state file is another user's, who alone may know of the service that it names."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        try:
            state_file(registry_dir).open("rb").close()
        except PermissionError:
            raise UserError(_foreign(registry_dir)) from None


def _foreign(registry_dir: Path) -> str:
    return f"the service that {state_file(registry_dir)} names belongs to another user: only they can ask or stop it"


def start_lock(registry_dir: Path) -> AbstractContextManager[int]:
    """Hold off other starters, so that two commands at once start one service."""
    from objrec.model_registry.store import claim_registry

    claim_registry(registry_dir)
    return lock(registry_dir / ".service.lock")


def refuse_other_systems() -> None:
    """Raise UserError where a process number may come to mean another process: anywhere but on Linux."""
    if Process.of(os.getpid()) is None or not hasattr(os, "pidfd_open"):
        raise UserError(
            "the background service needs Linux (its /proc and pidfd): set deploy.start=false, and serve in the "
            "foreground with python -m objrec.serve"
        )


def ensure_started(settings: ServiceSettings) -> Service:
    """Return the running service, starting one where there is none.

    Raises:
        UserError: it does not become ready, or this system is not Linux.
    """
    refuse_other_systems()
    registry_dir = Path(settings.registry_dir)
    with start_lock(registry_dir):
        running = find(registry_dir)
        if running is None:
            return _start(settings, registry_dir)
        warn_if_settings_differ(running, settings)
        return running


def warn_if_settings_differ(running: Service, settings: ServiceSettings) -> None:
    """Tell the user when a running service was started with other settings than those at hand."""
    if running.settings != settings.digest:
        print(
            f"note: the service at {running.url} keeps the serve.* settings that it was started with; to change them: "
            "python -m objrec.serve action=stop, then action=start",
            file=sys.stderr,
        )


def _start(settings: ServiceSettings, registry_dir: Path) -> Service:
    last = read_state(registry_dir)
    port = urlsplit(last.url).port if last is not None and settings.port == 0 else None
    instance = secrets.token_hex(8)
    from objrec.serving.settings import LOADING

    root = str(Path(__file__).resolve().parents[2])
    error_file(registry_dir).unlink(missing_ok=True)
    with os.fdopen(os.open(error_file(registry_dir), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as errors:
        launched = subprocess.run(
            [sys.executable, "-m", "objrec.deployment.daemon"],
            input=json.dumps(
                {"settings": settings.model_dump(), "instance": instance, "preferred_port": port}
            ).encode(),
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=child_environment(PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))),
            check=False,
        )
    child = Process.of(int(launched.stdout)) if launched.stdout.strip().isdigit() else None
    deadline = time.monotonic() + START_SECONDS
    reason = ""
    while time.monotonic() < deadline:
        service = read_state(registry_dir)
        if service is not None and service.instance == instance:
            with contextlib.suppress(OSError):
                status, answer = service.get("/readyz")
                if status == 200:
                    return service
                if answer.get("error") == "not_ready" and answer.get("reason") != LOADING:
                    reason = str(answer.get("reason"))
                    break
        if child is None or not child.alive():
            break
        time.sleep(0.02)
    while child is not None and child.signal(signal.SIGKILL):  # nobody knows its address: there is nothing to drain
        time.sleep(0.01)
    raise UserError(f"the service did not start: {reason or _last_words(registry_dir)} (log: {log_file(registry_dir)})")


def _last_words(registry_dir: Path) -> str:
    said = error_file(registry_dir).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return said[-1][:500] if said else "it said nothing"


def stop(registry_dir: Path) -> Service | None:
    """Stop the service and wait until it is gone; None where none ran.

    One that hangs is killed when it has not obeyed for ``STOP_SECONDS``: it has nothing left to answer.

    Raises:
        UserError: it does not end, or belongs to another user.
    """
    refuse_foreign_service(registry_dir)
    with start_lock(registry_dir):
        service, answer = ask(registry_dir)
        if service is None:
            return None
        try:
            service.process.signal(signal.SIGTERM)
        except PermissionError:
            raise UserError(_foreign(registry_dir)) from None
        if _has_ended(service):
            return service
        if answer:  # it is at work: its last requests may take longer than we wait
            raise UserError(
                f"the service (process {service.pid}) does not end yet: try again, or kill -9 {service.pid}"
            )
        service.process.signal(signal.SIGKILL)
        print(f"note: the service hung (process {service.pid}), so it was killed", file=sys.stderr)
        if not _has_ended(service):
            raise UserError(f"the service (process {service.pid}) does not end: the system holds it, look at its log")
        return service


def _has_ended(service: Service) -> bool:
    """Wait for its end, ``STOP_SECONDS`` at most."""
    deadline = time.monotonic() + STOP_SECONDS
    while service.process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
