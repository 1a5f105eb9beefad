"""`clarad chat`: the terminal adapter."""

import argparse
import sys
from functools import partial

from clarad.adapters.client import GatewayClient
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


async def _chat(arguments: argparse.Namespace, client: GatewayClient) -> int:
    screen = Screen(sys.stdout)
    channel = arguments.channel or f"cli-{arguments.user}"
    await chat(Terminal(client, screen, user=arguments.user, channel=channel), screen)
    return 0
