"""The frame that every command shares: quick ``--help``, one-line errors with a non-zero exit."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from objrec.config.errors import UserError
from objrec.config.space import why_full

INTERRUPTED = 130


def guard(action: Callable[[], int | None], *, catch_all: bool = False) -> int:
    """Run ``action`` and return its exit status: 2 for a user's mistake, 130 for Ctrl-C.

    A file or folder that cannot be used as it should (read-only, unreadable, of another kind) is a user's mistake too,
    and so is a full disk.
    A defect of ours raises, or with ``catch_all`` prints its traceback and returns 1.
    With ``OBJREC_DEBUG=1`` the traceback of a user's mistake is shown too.
    """
    try:
        return action() or 0
    except UserError as error:
        full = None if "no space left on" in str(error) else why_full(error, certain=True)
        return _say([*error.messages, *([full] if full else [])])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1
    except Exception as error:
        if (full := why_full(error)) is not None:
            return _say([full])
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            return _say([f"{error.filename}: {error.strerror}"])
        if not catch_all:
            raise
        traceback.print_exc()
        return 1


def _say(messages: Sequence[str]) -> int:
    """Print a user's mistakes, below a handler that still holds their exception."""
    if os.environ.get("OBJREC_DEBUG"):
        traceback.print_exc()
    with contextlib.suppress(OSError):  # standard error may be a file on the disk that is full
        for message in messages:
            print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def command(help_text: str, run: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """Answer ``--help``, or run a command with its arguments (None: those of this process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if wants_help(arguments):
        print(help_text.rstrip("\n"))
        return 0
    return guard(lambda: run(arguments))


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether ``--help`` or ``-h`` is among the arguments."""
    return any(a in ("--help", "-h") for a in arguments)


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """Return the overrides among command-line arguments; ``--config-dir DIR`` becomes ``--config-dir=DIR``.

    Raises:
        UserError: for any other flag.
    """
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--config-dir", "-cd"):
            if not rest:
                raise UserError("--config-dir needs a folder")
            overrides.append(f"--config-dir={rest.pop(0)}")
        elif argument.startswith("-") and not argument.startswith("--config-dir="):
            raise unknown_flag(argument)
        else:
            overrides.append(argument)
    return overrides


def unknown_flag(argument: str) -> UserError:
    """Return the error for a flag that no command takes."""
    name = argument.partition("=")[0]
    if name.startswith("--config-") or name[:3] in ("-cn", "-cp"):
        return UserError(
            f"{name}: not supported, every command composes the same config.yaml; put your "
            "changes into DIR/experiment/NAME.yaml and pass --config-dir DIR experiment=NAME"
        )
    return UserError(f"unknown flag {name}: pass settings as key=value, see --help")


def group_lines() -> str:
    """Return the config groups and their options, a line each, read from the folder (no Hydra import)."""
    from pathlib import Path

    from objrec.config.compose import config_dir

    groups = sorted(p for p in Path(config_dir()).iterdir() if p.is_dir() and any(p.glob("*.yaml")))
    return "\n".join(f"  {g.name + '=':<14} {', '.join(sorted(f.stem for f in g.glob('*.yaml')))}" for g in groups)
