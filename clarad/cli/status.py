"""`clarad status`: whether the daemon answers, and its database."""

import argparse

from clarad.cli import control
from clarad.protocol.control import Status


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Ask the running daemon whether it is well. The exit status is 0 if it answers and its\n"
        "database takes what is written, else 1: this is a health check."
    )
    parser.set_defaults(run=run, reads_broken_env_file=True)


def run(_arguments: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    return control.ask_and_print(Status("status"))
