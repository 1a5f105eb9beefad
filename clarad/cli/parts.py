"""What commands that have parts share, such as `clarad hooks list` and `clarad hooks runs`."""

import argparse
from collections.abc import Callable

from clarad import config
from clarad.adapters.operator import OperatorError
from clarad.automation.config.values import MAX_NAME
from clarad.cli import print_error
from clarad.protocol.control import Refused
from clarad.store import StoreError


class CommandError(Exception):
    """A part of a command cannot be done; the text says why."""


def run_part(
    arguments: argparse.Namespace, part: Callable[[argparse.Namespace, config.Settings], int]
) -> int:
    """Run a part with the settings and return its exit status; each expected error is one line."""
    try:
        return part(arguments, config.load()[0])
    except (config.ConfigError, Refused) as error:
        print_error(*error.problems)
    except (StoreError, OperatorError, CommandError) as error:
        print_error(str(error))
    return 1


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of every part that prints rows."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def name(text: str) -> str:
    """Check a name or an id on the command line: no longer than any name, and valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # sys.argv keeps such bytes as lone surrogates
        raise argparse.ArgumentTypeError("write it in UTF-8") from None
    if not 0 < len(text) <= MAX_NAME:
        raise argparse.ArgumentTypeError(f"write 1 to {MAX_NAME} characters")
    return text
