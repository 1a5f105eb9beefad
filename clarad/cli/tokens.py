"""`clarad tokens`: tokens of adapters, beside the one secret."""

import argparse

from clarad import config, operator
from clarad.adapters.operator import NoDaemon
from clarad.cli import control, listing, runs
from clarad.cli.runs import Unusable
from clarad.store.history import open_history, open_writable
from clarad.store.tokens import create_token, revoke_token

_LIST = ("name", "platforms", "nodes", "created_at", "used_at")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = (
        "Tokens that adapters show instead of CLARA_GATEWAY_SECRET. What a node with a token has,\n"
        "no other token can have: its name, its session, its messages. A new token is good at\n"
        "once, and a revoked one is so no more; connections that have used it are closed."
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    create = parts.add_parser("create", help="make a token and print it: it is shown only now")
    create.add_argument("name", type=runs.word, metavar="NAME", help="what it is to be called")
    create.add_argument(
        "--platform",
        action="append",
        default=[],
        type=_platform,
        metavar="PLATFORM",
        help="good for this platform only; may be given several times",
    )
    runs.add_list_options(parts.add_parser("list", help="the tokens, and when each was used last"))
    revoke = parts.add_parser("revoke", help="make a token good for nothing")
    revoke.add_argument("name", type=runs.word, metavar="NAME")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do one part; 1 if it cannot be done."""
    parts = {"create": _create, "list": _list, "revoke": _revoke}
    return runs.guarded(arguments, parts[arguments.part])


def _create(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_writable(settings.database_url) as connection:
        token = create_token(connection, arguments.name, arguments.platform)
    print(token)
    return 0


def _list(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_history(settings.database_url) as history:
        tokens = history.tokens()
    rows = [token._asdict() for token in tokens]
    if not arguments.json:
        rows = [row | {"platforms": ", ".join(row["platforms"]) or "all"} for row in rows]
    listing.show(rows, _LIST, as_json=arguments.json)
    return 0


def _revoke(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_writable(settings.database_url) as connection:
        if not revoke_token(connection, arguments.name):
            raise Unusable(f"there is no token {arguments.name!r}; `clarad tokens list` has them")
    try:
        done = control.ask(settings, operator.CloseToken("revoke", arguments.name))
    except NoDaemon:
        print(f"revoked {arguments.name}")
        return 0
    if done is None:
        return 1
    print(f"revoked {arguments.name}; {done.text}")
    return 0


def _platform(text: str) -> str:
    if not text.split() == [text]:
        raise argparse.ArgumentTypeError("write one name, without spaces")
    return runs.word(text)
