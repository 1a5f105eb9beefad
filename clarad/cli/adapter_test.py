"""`clarad adapter-test`: conformance tests for a gateway or an adapter."""

import argparse
import os
import sys

import trio

from clarad.adapters import GatewayError
from clarad.adapters.websocket import Lost
from clarad.cli import print_error
from clarad.conformance import adapter, gateway
from clarad.conformance.report import Verdict, show
from clarad.conformance.wire import Kit
from clarad.transport.listeners import CannotListen


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Check the gateway at a ws:// address, promise by promise, as docs/protocol.md has them.\n"
        "It registers nodes of its own, and sends messages.\n"
        "\n"
        "With --listen, play a gateway that loses connections, and check the adapter that is\n"
        "pointed at it against the rules at the end of docs/writing-an-adapter.md; you are told\n"
        "when to send a message through it. This cannot see what the adapter shows to its user:\n"
        "look yourself whether each answer appears once and whole.\n"
        "\n"
        "The exit status is 1 if a promise is broken."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("url", nargs="?", help="the gateway, such as ws://127.0.0.1:18789")
    target.add_argument(
        "--listen",
        type=int,
        metavar="PORT",
        help="wait for an adapter on this port of this machine (0: any that is free)",
    )
    parser.add_argument(
        "--secret",
        default=os.environ.get("CLARA_GATEWAY_TOKEN") or os.environ.get("CLARA_GATEWAY_SECRET"),
        help="the gateway's secret or a token (default: CLARA_GATEWAY_TOKEN or …_SECRET)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="how long to wait for each frame, also of an answer (default: 10, and 60 for an "
        "adapter)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the conformance tests and print their verdicts."""
    try:
        if arguments.listen is None:
            kit = Kit(arguments.url, arguments.secret, arguments.patience or 10.0)
            verdicts = trio.run(gateway.check, kit)
        else:
            verdicts = trio.run(_listen, arguments.listen, arguments.patience or 60.0)
    except (GatewayError, Lost, CannotListen) as error:
        print_error(str(error))
        return 1
    return 0 if show(verdicts, sys.stdout) else 1


async def _listen(port: int, patience: float) -> list[Verdict]:
    try:
        listener, *_ = await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as error:
        why = error.strerror or error
        raise CannotListen(f"cannot listen on port {port}: {why}; take another one") from None
    async with listener:
        bound = listener.socket.getsockname()[1]
        _announce(f"point the adapter at ws://127.0.0.1:{bound}")
        return await adapter.Play(listener, patience, _announce).run()


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
