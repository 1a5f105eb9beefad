"""Checks a shell command without running it: its syntax, and whether its program exists.

A program that is only known at run time, such as one named by a variable, is not checked.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SHELL: Final = "/bin/sh"

_QUIET: Final[Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.PIPE,
    "check": False,
}

_WORD: Final = re.compile(r"\s*([A-Za-z0-9_.+/-]+)(?=[\s;&|<>]|$)(?!\s*\()")
"""The first word of a command, unless it is an expansion, a quote, an assignment or a function."""


def check_command(
    command: str, working_dir: Path, env: Mapping[str, str] | None = None
) -> str | None:
    """Return why the command cannot work in `/bin/sh` in this directory, or `None`.

    `env` adds to the environment of the daemon. Blocks.
    """
    return _syntax(command) or _program(command, working_dir, dict(os.environ) | dict(env or {}))


def _syntax(command: str) -> str | None:
    # With -n the shell only parses the command.
    done = subprocess.run([SHELL, "-n", "-c", command], **_QUIET)  # noqa: S603
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"the shell does not understand the command ({lines[-1] if lines else 'no reason'})"


def _program(command: str, working_dir: Path, env: Mapping[str, str]) -> str | None:
    first = _WORD.match(command)
    if first is None:
        return None
    word = first[1]
    if "/" in word:
        path = working_dir / word
        if not path.is_file():
            return f"there is no program {path}"
        if not os.access(path, os.X_OK):
            return f"{path} is not executable: `chmod +x` it"
        return None
    # Ask the shell, which knows its builtins. The word is an argument, never part of the script.
    look = [SHELL, "-c", 'command -v "$1"', SHELL, word]
    if subprocess.run(look, env=env, **_QUIET).returncode == 0:  # noqa: S603
        return None
    return f"there is no program {word!r} on the PATH"
