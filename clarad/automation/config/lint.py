"""Whether a shell command can work at all: its syntax, and whether the program is there.

Nothing is run. What depends on the moment, such as a program named by a variable, is not judged.
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
"""The first word of a command, unless it is expanded, quoted, assigned or defined there."""


def doubt(command: str, working_dir: Path, env: Mapping[str, str] | None = None) -> str | None:
    """Say why the command cannot work as a command of `/bin/sh` in this directory, if so.

    `env` is what the command is given besides the environment.
    """
    return _syntax(command) or _program(command, working_dir, dict(os.environ) | dict(env or {}))


def _syntax(command: str) -> str | None:
    # With -n the shell reads the command, and runs nothing.
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
    # The shell knows what is built into it; the word is an argument, and not part of the script.
    look = [SHELL, "-c", 'command -v "$1"', SHELL, word]
    if subprocess.run(look, env=env, **_QUIET).returncode == 0:  # noqa: S603
        return None
    return f"there is no program {word!r} on the PATH"
