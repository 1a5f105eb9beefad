"""`clarad init`: commented examples of hooks.yaml and scheduler.yaml, where the daemon looks."""

import argparse
import os
from pathlib import Path

from clarad import config
from clarad.cli import print_error
from clarad.config import files


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Write hooks.yaml and scheduler.yaml, with every key explained and all examples switched\n"
        "off, to CLARA_HOOKS_DIR (default: hooks) and CLARA_SCHEDULER_DIR (default: this\n"
        "directory). A file that is there already is left as it is. The exit status is 1 if one\n"
        "cannot be written."
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Write the files that do not exist, and print what became of each."""
    try:
        settings, _ = config.load()
    except config.ConfigError as error:
        print_error(*error.problems)
        return 1
    status = 0
    for variable, path in (
        ("CLARA_HOOKS_DIR", settings.hooks_dir / "hooks.yaml"),
        ("CLARA_SCHEDULER_DIR", settings.scheduler_dir / "scheduler.yaml"),
    ):
        try:
            files.require_ours(path.parent)
            _make_directories(path.parent)
            is_new = _write_new(path, _example(path.name))
            print(f"{path} is written" if is_new else f"{path} is there already, left as it is")
        except files.NotOurs as error:
            print_error(f"{variable}: {error}")
            status = 1
        except OSError as error:
            print_error(
                f"{variable}: {error.strerror}: {error.filename}; name a directory of your own"
            )
            status = 1
    return status


def _example(name: str) -> str:
    """Return an example: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent.parent
    places = (package / "examples", package.parent / "hooks", package.parent)
    return next(
        file.read_text(encoding="utf-8")
        for place in places
        if (file := place / f"{name}.example").is_file()
    )


def _make_directories(directory: Path) -> None:
    """Make a directory and its parents; `Path.mkdir` would give its mode to the last one only."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o755 if _is_for_daemon_user() else 0o700)


def _is_for_daemon_user() -> bool:
    """Return whether another user's daemon reads the files: root writes those in /etc."""
    return os.geteuid() == 0


def _write_new(path: Path, text: str) -> bool:
    """Write a file unless it exists; return whether it was written."""
    mode = 0o644 if _is_for_daemon_user() else 0o600
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return False
    try:
        with open(made, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:  # half an example would be left as it is by the next try
        path.unlink()
        raise
    return True
