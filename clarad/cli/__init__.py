"""The command `clarad`: one module a command; each is imported when it is used."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from clarad.config import envfile
from clarad.version import VERSION

COMMANDS: Final = {
    "run": "run the daemon in the foreground",
    "migrate": "bring the database to the tables that this version needs, or back",
    "backup": "copy an SQLite database, look at a copy, put one in its place",
    "chat": "talk to the daemon from this terminal",
    "send": "send one message and print the answer",
    "hooks": "what runs on events: list it, its runs, test it, replay a run",
    "tasks": "what runs by the clock: list it, its runs, run it now, pause it, look ahead",
    "sandbox": "the sandboxes: what there is, run something in one, try their walls",
    "status": "ask the running daemon whether it is well",
    "tokens": "tokens of adapters, beside the one secret: create, list, revoke",
    "reload": "have the running daemon read its settings, hooks and tasks again",
    "init": "write commented examples of hooks.yaml and scheduler.yaml",
    "setup-systemd": "install the units for a clarad that pip or pipx has installed",
    "adapter-test": "hold a gateway to the promises of docs/protocol.md, frame by frame",
    "protocol": "print the wire between adapters and the gateway, for machines to read",
    "check": "read the whole configuration and say what is wrong with it",
}


def main(argv: Sequence[str] | None = None, begin: Callable[[], None] = lambda: None) -> int:
    """Run one command and return its exit status; `begin` is called once Ctrl-C may raise."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="clarad",
        description="The always-on backend of a self-hosted assistant.",
        epilog="Settings come from the environment and from CLARA_ENV_FILE; README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"clarad {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in words:
            module = name.replace("-", "_")
            importlib.import_module(f"clarad.cli.{module}").configure(command)
    arguments = parser.parse_args(words)
    arguments.env_file_problems = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a character
            stream.reconfigure(errors="replace")
    try:
        arguments.environment = envfile.Overlay()
    except envfile.EnvFileError as error:
        if getattr(arguments, "before_run", False):  # `clarad run` says it: see migrate.py
            return os.EX_OK
        if not getattr(arguments, "reads_broken_env_file", False):
            print_error(*error.problems)
            return os.EX_CONFIG
        arguments.env_file_problems = error.problems
        os.environ.update(error.found)  # the state directory may be among them
    try:
        begin()
        status: int = arguments.run(arguments)
        if sys.stdout is not None:  # whoever started us may have closed it
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if isinstance(innermost(group), KeyboardInterrupt):  # in a nursery
            return 130
        raise
    except BrokenPipeError:  # the reader of a pipe had enough
        _discard_output()
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        print_error(f"cannot write the output: {error.strerror}")
        return 1
    return status


def _discard_output() -> None:
    """Discard what is still buffered: writing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(*texts: str) -> None:
    """Print lines to standard error, such as why a command cannot do its work."""
    for text in texts:
        print(f"clarad: {text}", file=sys.stderr)


def confirmed() -> bool:
    """Ask before what cannot be undone, and return the answer; no terminal on stdin means no.

    The question goes to standard error: standard output may be redirected to a file.
    """
    if not sys.stdin.isatty():
        print_error("nothing has changed; if this is what you want, say --yes")
        return False
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print_error("nothing has changed")
    return False


def innermost(error: BaseException) -> BaseException:
    """Return the exception inside groups of one, as nested nurseries wrap it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
