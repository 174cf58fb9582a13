"""Run steps on this machine: reuse what is stored, start a process for what is not, keep a record."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from objrec.config.environment import child_environment
from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Config
from objrec.config.space import full_disk_said, is_full
from objrec.runner.cache import Entry, StepCache
from objrec.runner.display import Display
from objrec.runner.given import inputs_of, steps_given
from objrec.steps import NAMES
from objrec.steps.base import Step, lookup, restrict
from objrec.steps.keys import KeyParts, SourceIndex, key_parts
from objrec.system import outputs as places
from objrec.system.files import write_json
from objrec.system.outputs import claim_cache
from objrec.system.processes import ORDER, PARENT
from objrec.system.progress import CHANNEL

Status = Literal["ran", "reused", "given", "failed", "skipped"]
CONTROL = ("force", "run_dir")  # overrides that steer the runner and mean nothing to a step


@dataclass
class StepRecord:
    name: str
    status: Status = "skipped"
    reason: str = "an earlier step failed"
    seconds: float = 0.0
    key: str | None = None
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass
class RunRecord:
    """What ``run.json`` holds."""

    id: str
    seconds: float
    accuracy: float | None
    endpoint_url: str | None
    steps: list[StepRecord]

    def step(self, name: str) -> StepRecord:
        return next(s for s in self.steps if s.name == name)

    @staticmethod
    def did_anything(run_dir: Path) -> bool:
        """Whether a step of the run in this folder has ended well."""
        steps = json.loads((run_dir / "run.json").read_text())["steps"]
        return any(s["status"] in ("ran", "reused") for s in steps)

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / "run.json", asdict(self))


class StepFailed(RuntimeError):
    """A step's process ended with an error that is not the user's; the message holds the end of its log."""


def run_pipeline(
    steps: Sequence[Step], config: Config, overrides: Sequence[str], *, run_dir: Path, display: Display
) -> RunRecord:
    """Run ``steps`` in order and write ``run_dir/run.json`` after each.

    Args:
        overrides: as the user typed them; each step's process composes the same configuration from them.

    Raises:
        UserError: a step refused its configuration or input, an unknown step is forced, or what the user gives does
            not go together.
        StepFailed: a step broke down.
    """
    names = [s.name for s in steps]
    for name in set(config.force) - {*names, *NAMES, "all"}:
        raise UserError(f"force={name}: no such step.{did_you_mean(name, [*names, 'all'])}")
    record = RunRecord(run_dir.name, 0.0, None, None, [StepRecord(n) for n in names])
    record.save(run_dir)
    given = check_run(steps, config)
    runner = _Runner(config, overrides, run_dir, display)
    started = time.monotonic()
    try:
        for step, row in zip(steps, record.steps, strict=True):
            if step.name in given:
                runner.give(step, row, given[step.name])
            else:
                _run_one(runner, step, row)
            record.seconds = round(time.monotonic() - started, 3)
            _read_results(record, row)
            record.save(run_dir)
    finally:
        record.seconds = round(time.monotonic() - started, 3)
        with full_disk_said(run_dir):
            record.save(run_dir)
            runner.sources.remember()
    return record


def check_run(steps: Sequence[Step], config: Config) -> dict[str, str]:
    """Check what the user gives before any work; return the steps that need not run, with the reason.

    Raises:
        UserError: it does not go together, or the cache or the run's folder would be filled inside of it.
    """
    given = steps_given(steps, config)
    check_folders(config, inputs_of(steps, config))
    claim_cache(Path(config.cache_dir))
    return given


def check_folders(config: Config, inputs: Mapping[str, Path]) -> None:
    """Raise UserError where the cache or a run's folder would be filled inside of an input."""
    run = {"runs_dir": config.runs_dir} if config.run_dir is None else {"run_dir": config.run_dir}
    places.refuse_inside({"cache_dir": config.cache_dir, **run}, inputs)


def new_run_dir(config: Config, kind: str) -> Path:
    """Create the folder of this run: ``run_dir``, or a new one under ``runs_dir/<kind>``.

    Raises:
        UserError: ``run_dir`` holds files and objrec did not make it.
    """
    if config.run_dir is not None:
        run_dir = Path(config.run_dir)
        places.claim(run_dir, "run_dir")
        return run_dir
    parent = Path(config.runs_dir) / kind
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        run_dir = parent / f"{stamp}{suffix}"
        try:
            run_dir.mkdir()
        except FileExistsError:
            continue
        places.mark(run_dir)
        return run_dir
    raise UserError(f"{parent} has too many runs from this second")


def point_latest(run_dir: Path) -> None:
    """Let ``latest`` beside the run folder point to it, in one step. What is there and is no link stays."""
    latest = run_dir.parent / "latest"
    if os.path.lexists(latest) and not latest.is_symlink():
        return
    link = run_dir.parent / f".latest-{run_dir.name}-{os.getpid()}"
    link.symlink_to(run_dir.name)
    link.replace(latest)


def forget_run(run_dir: Path) -> None:
    """Remove the folder of a run that was refused before it did anything, and the parents that it leaves empty."""
    shutil.rmtree(run_dir)
    with contextlib.suppress(OSError):
        run_dir.parent.rmdir()
        run_dir.parent.parent.rmdir()


def _run_one(runner: _Runner, step: Step, row: StepRecord) -> None:
    started = time.monotonic()
    row.status, row.reason = "failed", "interrupted"
    try:
        runner.run(step, row)
    except Exception as error:
        row.reason = str(error).split("\n")[0]
        raise
    finally:
        row.seconds = round(time.monotonic() - started, 3)
        runner.display.finish(step.name, row.status, row.reason, row.seconds)


def _read_results(record: RunRecord, row: StepRecord) -> None:
    if (path := row.outputs.get("accuracy_file")) is not None:
        record.accuracy = json.loads(Path(path).read_text())["accuracy"]
    if (path := row.outputs.get("endpoint_file")) is not None:
        result = json.loads(Path(path).read_text())
        record.endpoint_url = result["url"]
        row.reason = result["decision"]


class _Runner:
    def __init__(self, config: Config, overrides: Sequence[str], run_dir: Path, display: Display) -> None:
        self.config = config
        self.overrides = [o for o in overrides if o.split("=")[0] not in CONTROL]
        self.run_dir = run_dir
        self.display = display
        cache = Path(config.cache_dir)
        self.store = StepCache(cache)
        self.sources = SourceIndex(cache / "sources.json")
        self.available: dict[str, tuple[Path, str | None]] = {}  # port -> its path, content digest

    def run(self, step: Step, row: StepRecord) -> None:
        inputs = self._inputs(step)
        if not step.cached:
            self._act(step, inputs, row)
            return
        parts = key_parts(step, self.config, {n: self._digest(n, p) for n, p in inputs.items()}, self.sources)
        row.key = parts.key
        with self.store.lock(step, parts.key) as fd:
            entry, damage = self.store.find(step, parts.key)
            if entry is not None and not self._forced(step):
                row.status, row.reason = "reused", "nothing it depends on changed"
            else:
                reason = "forced" if entry is not None else damage or self._why(step, parts)
                if entry is not None or damage:
                    self.store.clear_workspace(step, parts.key)
                self.display.start(step.name, reason)
                try:
                    with full_disk_said(Path(self.config.cache_dir)):
                        self._start(step, inputs, self.store.workspace(step, parts.key), parts, fd)
                        entry = self.store.publish(step, parts.key, parts)
                except UserError:
                    self.store.clear_refused(step, parts.key)
                    raise
                row.status, row.reason = "ran", reason
        self._take(entry, row)

    def give(self, step: Step, row: StepRecord, reason: str) -> None:
        """Take the user's own in place of what a step would make."""
        row.status, row.reason = "given", reason
        row.outputs = {p.name: str(v) for p in step.outputs if (v := lookup(self.config, p.name)) is not None}
        for name, path in row.outputs.items():
            self.available[name] = (Path(path), None)
        self.display.finish(step.name, row.status, row.reason, row.seconds)

    def _act(self, step: Step, inputs: dict[str, Path], row: StepRecord) -> None:
        """Run a step that is never cached in this process: it decides, and seldom has anything to load."""
        outputs = {p.name: self.run_dir / (f"{p.name}.json" if p.kind == "file" else p.name) for p in step.outputs}
        self.display.start(step.name, "always runs")
        step.run(restrict(self.config, step), inputs, outputs)
        row.status, row.reason = "ran", "always runs"
        row.outputs = {n: str(p) for n, p in outputs.items()}

    def _inputs(self, step: Step) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for port in step.inputs:
            if port.name in self.available:
                found[port.name] = self.available[port.name][0]
            elif (given := lookup(self.config, port.config or port.name)) is not None:
                found[port.name] = Path(given)
                if not found[port.name].exists():
                    raise UserError(f"{port.config or port.name}={given}: there is no such file or folder")
            elif not port.optional:
                raise UserError(f"step {step.name} needs {port.name}=PATH")
        return found

    def _digest(self, name: str, path: Path) -> str:
        _, digest = self.available.get(name, (path, None))
        if digest is None:
            digest = self.store.fingerprint(path)
            self.available[name] = (path, digest)
        return digest

    def _forced(self, step: Step) -> bool:
        return step.name in self.config.force or "all" in self.config.force

    def _why(self, step: Step, parts: KeyParts) -> str:
        last = self.store.last_parts(step)
        return "first run" if last is None else parts.changes_since(last) or "no stored output"

    def _take(self, entry: Entry, row: StepRecord) -> None:
        row.outputs = {n: str(p) for n, p in entry.outputs.items()}
        for name, path in entry.outputs.items():
            self.available[name] = (path, entry.digests[name])

    def _start(
        self, step: Step, inputs: dict[str, Path], outputs: dict[str, Path], parts: KeyParts, lock_fd: int
    ) -> None:
        """Start the step's process and wait for it. It refuses to do anything else than ``parts`` say."""
        ports = [f"{n}={p}" for n, p in {**inputs, **outputs}.items()]
        taken = {k for p in (*step.inputs, *step.outputs) for k in (p.name, p.config)}
        overrides = [o for o in self.overrides if o.partition("=")[0].lstrip("+~") not in taken]
        command = [sys.executable, "-m", step.module, *overrides, *ports]  # what is last wins
        order = json.dumps({"key": parts.key, "inputs": parts.inputs})
        log_path = self.run_dir / f"{step.name}.log"
        with ExitStack() as stack:
            log = stack.enter_context(log_path.open("wb"))
            receiver, sender = os.pipe()
            more = {CHANNEL: str(sender), PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1", ORDER: order}
            env = child_environment(step.secrets, **more)
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, pass_fds=(lock_fd, sender)
                )
            finally:
                os.close(sender)
            listener = threading.Thread(target=self._listen, args=(step.name, receiver), daemon=True)
            listener.start()
            try:
                status = process.wait()
            except BaseException:
                process.terminate()  # a training saves itself on SIGTERM
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if status != 0:
            _fail(step, status, log_path)
        if absent := [n for n, p in outputs.items() if not p.exists()]:
            raise StepFailed(f"step {step.name} finished without producing {', '.join(absent)}; see {log_path}")

    def _listen(self, step: str, receiver: int) -> None:
        with os.fdopen(receiver, errors="replace") as lines:
            for line in lines:
                try:
                    said: dict[str, Any] = json.loads(line)
                    if "note" in said:
                        self.display.note(said["note"])
                        continue
                    self.display.advance(step, said["done"], said["total"], said["text"])
                except (ValueError, KeyError):
                    continue  # half a line of a process that was killed


def _fail(step: Step, status: int, log_path: Path) -> None:
    lines = log_path.read_text(errors="replace").splitlines()
    if status == 2 and (errors := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]):
        raise UserError(errors)
    if is_full(log_path):  # what the step said found no room in its log
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log_path))
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    tail = "\n".join(f"  {line}" for line in lines[-15:])
    raise StepFailed(f"step {step.name} {ended}; the end of {log_path}:\n{tail}")
