"""`clarad status`: whether the daemon answers."""

import argparse

from clarad import config, operator
from clarad.adapters.operator import OperatorError
from clarad.cli import control, fail


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Ask the running daemon whether it is well. The exit status is 0 if it answers, else 1:\n"
        "this is a health check."
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    try:
        settings, _ = config.load()
        done = control.ask(settings, operator.Status("status"))
    except config.ConfigError as error:
        fail(*error.problems)
        return 1
    except OperatorError as error:
        fail(str(error))
        return 1
    if done is None:
        return 1
    print(done.text)
    return 0
