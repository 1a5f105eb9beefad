"""`clarad chat`: the terminal adapter."""

import argparse
import sys
from functools import partial

from clarad.adapters import Adapter
from clarad.adapters.terminal import Screen, Terminal, chat
from clarad.cli import connect


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Talk to the daemon, a line at a time; the answer is shown as it comes.\n"
        "Ctrl-C cancels the message that is being answered, Ctrl-D leaves."
    )
    connect.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Talk until Ctrl-D."""
    return connect.talk(arguments, partial(_chat, arguments))


async def _chat(arguments: argparse.Namespace, adapter: Adapter) -> int:
    screen = Screen(sys.stdout)
    channel = arguments.channel or f"cli-{arguments.user}"
    await chat(Terminal(adapter, screen, user=arguments.user, channel=channel), screen)
    return 0
