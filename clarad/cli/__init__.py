"""The command `clarad`: one module a command; each is imported when it is used."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from clarad import __version__

COMMANDS: Final = {
    "run": "run the daemon in the foreground",
    "migrate": "bring the database to the tables that this version needs, or back",
    "chat": "talk to the daemon from this terminal",
    "send": "send one message and print the answer",
    "check": "read the whole configuration and say what is wrong with it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="clarad",
        description="The always-on backend of a self-hosted assistant.",
        epilog="Settings come from the environment; README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"clarad {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in words:
            importlib.import_module(f"clarad.cli.{name}").configure(command)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()
        return 141
    return status


def fail(*texts: str) -> None:
    """Say on standard error, a line for each text, why a command cannot do its work."""
    for text in texts:
        print(f"clarad: {text}", file=sys.stderr)


def innermost(error: BaseException) -> BaseException:
    """Take a single exception out of the groups that nurseries wrap around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
