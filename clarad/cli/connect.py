"""What `chat` and `send` share: finding the daemon, and talking to it."""

import argparse
import getpass
import os
import secrets
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from clarad import config
from clarad.adapters import Adapter, AuthError, GatewayError, UnansweredError, open_adapter
from clarad.cli import innermost, print_error
from clarad.config import discovery

PATIENCE: Final = 10.0
"""Seconds to wait for a daemon to come back, such as one that is being restarted."""

_AUTH_HINT: Final = "For this command, set CLARA_GATEWAY_SECRET or CLARA_GATEWAY_TOKEN."

Talk = Callable[[Adapter], Awaitable[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the daemon is and who is talking."""
    parser.add_argument(
        "--url",
        help="the gateway's address, ws://, wss:// or ws+unix:/path (default: CLARA_GATEWAY_URL, "
        "else the daemon that runs with the same settings)",
    )
    parser.add_argument(
        "--user", default=getpass.getuser(), help="who you are (default: %(default)s)"
    )
    parser.add_argument("--channel", help="the conversation (default: one of your own)")
    parser.set_defaults(reads_broken_env_file=True)


def talk(arguments: argparse.Namespace, conversation: Talk) -> int:
    """Connect, run the conversation and return its exit status; 1 if the connection fails.

    75 (EX_TEMPFAIL) if it fails after the daemon has accepted a message, which it will run.
    """
    secret = None
    try:
        settings = config.load_as_client()
        url = arguments.url or os.environ.get("CLARA_GATEWAY_URL")
        tls = None
        if not url:
            url, tls = _find_daemon(settings)
        secret = os.environ.get("CLARA_GATEWAY_TOKEN") or settings.gateway_secret
        return trio.run(partial(_talk, url, secret, tls, conversation))
    except config.ConfigError as error:
        print_error(*error.problems)
    except Exception as error:
        cause = innermost(error)
        if not isinstance(cause, GatewayError):
            raise
        needs_secret = isinstance(cause, AuthError) and not secret
        print_error(f"{cause} {_AUTH_HINT}" if needs_secret else f"{cause}")
        if isinstance(cause, UnansweredError):
            return os.EX_TEMPFAIL
    return 1


def _find_daemon(settings: config.Settings) -> tuple[str, ssl.SSLContext | None]:
    """Return the URL of the daemon with these settings, and what trusts its certificate."""
    certificate = settings.gateway_tls_cert
    found = discovery.find(settings.state_dir) or discovery.Address(
        settings.gateway_host, settings.gateway_port, tls=certificate is not None
    )
    if not found.tls or certificate is None:
        return discovery.url(*found), None
    from clarad.transport.tls import client_context

    return discovery.url(*found), client_context(certificate)


async def _talk(
    url: str, secret: str | None, tls: ssl.SSLContext | None, conversation: Talk
) -> int:
    async with open_adapter(
        url,
        node_id=f"cli-{secrets.token_hex(8)}",
        platform="cli",
        secret=secret,
        patience=PATIENCE,
        unregister=True,
        tls=tls,
    ) as adapter:
        return await conversation(adapter)
