"""`clarad reload`: has the running daemon read its settings, hooks and tasks again."""

import argparse

from clarad.cli import control
from clarad.protocol.control import Reload


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Have the running daemon read the file that CLARA_ENV_FILE names, hooks.yaml and\n"
        "scheduler.yaml again, and wait until they are in force. If anything is wrong with them\n"
        "nothing changes, and the exit status is 1. Settings that need a restart are named."
    )
    parser.set_defaults(run=run, reads_broken_env_file=True)


def run(_arguments: argparse.Namespace) -> int:
    """Reload, and print the result."""
    return control.ask_and_print(Reload("reload"), if_refused="nothing has changed")
