"""`clarad send`: one message, for scripts."""

import argparse
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial

import trio

from clarad import protocol
from clarad.adapters import Adapter
from clarad.adapters.terminal import Screen, Terminal
from clarad.cli import connect, print_error


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send one message and write the answer to standard output as it comes. The exit status\n"
        "is 0 if it was answered, else 1, with the reason on standard error; 75 if the daemon has\n"
        "gone and will run the message after its next start: do not send it anew."
    )
    parser.add_argument("text", nargs="?", help="the message (default: standard input)")
    connect.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the message and wait for its end."""
    text = arguments.text if arguments.text is not None else sys.stdin.read()
    return connect.talk(arguments, partial(_send, arguments, text))


async def _send(arguments: argparse.Namespace, text: str, adapter: Adapter) -> int:
    screen = Screen(sys.stdout)
    channel = arguments.channel or f"cli-{arguments.user}"
    terminal = Terminal(adapter, screen, user=arguments.user, channel=channel)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(screen.spin)
            nursery.start_soon(_cancel_at_signal, signals, terminal)
            outcome = await terminal.ask(text)
            nursery.cancel_scope.cancel("answered")
    if isinstance(outcome, protocol.ResponseEnd):
        return 0
    if isinstance(outcome, protocol.Cancelled):
        print_error(f"cancelled: {outcome.reason}")
    else:
        print_error(outcome.message)
    return 1


async def _cancel_at_signal(signals: AsyncIterator[int], terminal: Terminal) -> None:
    async for number in signals:
        terminal.cancel("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
