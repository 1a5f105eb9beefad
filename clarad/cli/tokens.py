"""`clarad tokens`: tokens of adapters, beside the one secret."""

import argparse
from typing import Final

from clarad import config
from clarad.adapters.operator import NoDaemon, OperatorError
from clarad.cli import agreed, control, fail, listing, runs
from clarad.cli.runs import Unusable
from clarad.protocol.control import CloseToken
from clarad.store.history import open_history, open_writable
from clarad.store.tokens import create_token, free_node, read_tokens, revoke_token

_LIST: Final = ("name", "platforms", "nodes", "created_at", "used_at")

_SHUT: Final = (
    "this is the first token, and CLARA_GATEWAY_SECRET is not set here: from then on every adapter "
    "needs a token, and those that have none are refused when they register"
)

_OPEN: Final = (
    "warning: that was the last token, and CLARA_GATEWAY_SECRET is not set here: whoever can reach "
    "the gateway can use it"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = (
        "Tokens that adapters show instead of CLARA_GATEWAY_SECRET. A node is whose who registers\n"
        "it first, a token's or the secret's: nobody else can have its name, its session or its\n"
        "answers. A new token is good at once. When one is revoked the connections that have\n"
        "used it are closed, and anybody can have its nodes."
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    create = parts.add_parser("create", help="make a token and print it: it is shown only now")
    create.add_argument("name", type=_name, metavar="NAME", help="what it is to be called")
    create.add_argument(
        "--platform",
        action="append",
        default=[],
        type=_platform,
        metavar="PLATFORM",
        help="good for this platform only; may be given several times",
    )
    create.add_argument(
        "--yes", action="store_true", help="do not ask, if adapters without a token are shut out"
    )
    runs.add_list_options(parts.add_parser("list", help="the tokens, and when each was used last"))
    revoke = parts.add_parser("revoke", help="make a token good for nothing")
    revoke.add_argument("name", type=runs.word, metavar="NAME")
    free = parts.add_parser("free", help="let anybody have a node, such as one that gets a token")
    free.add_argument("platform", type=runs.word, metavar="PLATFORM")
    free.add_argument("node", type=runs.word, metavar="NODE")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do one part; 1 if it cannot be done."""
    parts = {"create": _create, "list": _list, "revoke": _revoke, "free": _free}
    return runs.guarded(arguments, parts[arguments.part])


def _create(arguments: argparse.Namespace, settings: config.Settings) -> int:
    if settings.gateway_secret is None:
        with open_writable(settings.database_url) as connection:
            is_first = not read_tokens(connection)
        if is_first:
            fail(_SHUT)
            if not (arguments.yes or agreed()):
                return 1
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
        is_open = settings.gateway_secret is None and not read_tokens(connection)
    if is_open:
        fail(_OPEN)
    try:
        done = control.ask(settings, CloseToken("revoke", arguments.name))
    except NoDaemon:
        print("revoked")
        return 0
    except OperatorError as error:
        raise Unusable(f"revoked, but its connections may be open still: {error}") from None
    if done is None:
        return 1
    print(f"revoked; {done.text}")
    return 0


def _free(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_writable(settings.database_url) as connection:
        if not free_node(connection, arguments.platform, arguments.node):
            raise Unusable(f"{arguments.node!r} of {arguments.platform!r} is nobody's")
    print("freed; who registers it next has it")
    return 0


def _name(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError("write printable characters")
    return runs.word(text)


def _platform(text: str) -> str:
    if text.split() != [text]:
        raise argparse.ArgumentTypeError("write one name, without spaces")
    return _name(text)
