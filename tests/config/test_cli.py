"""What every command does with a file or folder that it cannot use. Not by modes: root may do anything."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.serving import make_model, put_in_registry

from objrec import predict, serve
from objrec import registry as registry_command
from objrec.config.cli import guard
from objrec.model_registry.store import FolderRegistry


def fail(error: Exception) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


def test_an_error_that_names_a_file_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = PermissionError(errno.EACCES, "Permission denied", "some/file")
    assert guard(fail(locked)) == guard(fail(locked), catch_all=True) == 2
    assert capsys.readouterr().err == "error: some/file: Permission denied\n" * 2
    monkeypatch.setenv("OBJREC_DEBUG", "1")
    assert guard(fail(locked)) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionRefusedError(errno.ECONNREFUSED, "refused"), OSError("?"), KeyError("k")])
def test_any_other_error_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)):
        guard(fail(error))
    assert guard(fail(error), catch_all=True) == 1
    assert "Traceback" in capsys.readouterr().err


def a_file(root: Path) -> Path:
    """A file in place of the registry."""
    root.rename(root.with_name("moved"))
    root.write_text("")
    return root


def folders(name: str) -> Callable[[Path], Path]:
    """A folder in place of one of its files."""

    def spoil(root: Path) -> Path:
        (root / name).unlink(missing_ok=True)
        (root / name).mkdir()
        return root / name

    return spoil


REGISTRY, SERVE = registry_command.main, serve.main
COMMANDS = [
    *[(a_file, REGISTRY, words) for words in (["gc"], ["list"], ["verify"], ["rollback"])],
    *[(a_file, SERVE, [f"action={action}"]) for action in ("start", "stop")],
    *[(folders("aliases.json"), REGISTRY, [word]) for word in ("list", "verify", "rollback")],
    *[(folders("aliases.json"), SERVE, [f"action={action}"]) for action in ("start", "run")],
    *[(folders("registry.jsonl"), REGISTRY, words) for words in (["list"], ["gc"], ["promote", "production"])],
    *[(folders(".lock"), REGISTRY, words) for words in (["gc"], ["promote", "production"], ["rollback"])],
    (folders(".service.lock"), SERVE, ["action=stop"]),
]


@pytest.mark.parametrize(("spoil", "main", "words"), COMMANDS)
def test_a_registry_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Path],
    main: Callable[[list[str]], int],
    words: list[str],
) -> None:
    root = tmp_path / "registry"
    for seed in (1, 2):
        FolderRegistry(root).promote(put_in_registry(root, make_model(tmp_path / f"m{seed}", seed=seed)))
    spoilt = spoil(root)
    assert main([*words, f"registry_dir={root}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(spoilt) in said


def test_predict_names_a_registry_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "registry").write_text("")
    assert predict.main([str(tmp_path), "--registry", str(tmp_path / "registry")]) == 2
    assert str(tmp_path / "registry") in capsys.readouterr().err
