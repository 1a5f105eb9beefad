"""`clarad tokens`: tokens of adapters, beside the one secret."""

import argparse
from typing import Final

from clarad import config
from clarad.adapters.operator import NoDaemon, OperatorError
from clarad.cli import confirmed, control, listing, parts, print_error
from clarad.cli.parts import CommandError
from clarad.protocol.control import CloseToken
from clarad.store.history import open_history, open_writable
from clarad.store.tokens import create_token, free_node, read_tokens, revoke_token

_LIST: Final = ("name", "platforms", "nodes", "created_at", "used_at")

_SHUTS_OUT: Final = (
    "this is the first token, and CLARA_GATEWAY_SECRET is not set here: from then on every adapter "
    "needs a token, and those that have none are refused when they register"
)

_LEAVES_OPEN: Final = (
    "warning: that was the last token, and CLARA_GATEWAY_SECRET is not set here: whoever can reach "
    "the gateway can use it"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = (
        "Tokens that adapters show instead of CLARA_GATEWAY_SECRET. A node belongs to the token,\n"
        "or the secret, that registers it first: no other can get its name, its session or its\n"
        "answers. A new token is valid at once. Revoking one closes the connections that used\n"
        "it, and frees its nodes."
    )
    subparsers = parser.add_subparsers(dest="part", metavar="PART", required=True)
    create = subparsers.add_parser("create", help="make a token and print it: it is shown only now")
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
    parts.add_json_option(
        subparsers.add_parser("list", help="the tokens, and when each was used last")
    )
    revoke = subparsers.add_parser("revoke", help="make a token good for nothing")
    revoke.add_argument("name", type=parts.name, metavar="NAME")
    free = subparsers.add_parser(
        "free", help="let anybody have a node, such as one that gets a token"
    )
    free.add_argument("platform", type=parts.name, metavar="PLATFORM")
    free.add_argument("node", type=parts.name, metavar="NODE")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails."""
    functions = {"create": _create, "list": _list, "revoke": _revoke, "free": _free}
    return parts.run_part(arguments, functions[arguments.part])


def _create(arguments: argparse.Namespace, settings: config.Settings) -> int:
    if settings.gateway_secret is None:
        with open_writable(settings.database_url) as connection:
            is_first = not read_tokens(connection)
        if is_first:
            print_error(_SHUTS_OUT)
            if not (arguments.yes or confirmed()):
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
            raise CommandError(
                f"there is no token {arguments.name!r}; `clarad tokens list` has them"
            )
        is_open = settings.gateway_secret is None and not read_tokens(connection)
    if is_open:
        print_error(_LEAVES_OPEN)
    try:
        done = control.ask(settings, CloseToken("revoke", arguments.name))
    except NoDaemon:
        print("revoked")
        return 0
    except OperatorError as error:
        raise CommandError(f"revoked, but its connections may be open still: {error}") from None
    print(f"revoked; {done.text}")
    return 0


def _free(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_writable(settings.database_url) as connection:
        if not free_node(connection, arguments.platform, arguments.node):
            raise CommandError(f"{arguments.node!r} of {arguments.platform!r} is nobody's")
    print("freed; who registers it next has it")
    return 0


def _name(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError("write printable characters")
    return parts.name(text)


def _platform(text: str) -> str:
    if text.split() != [text]:
        raise argparse.ArgumentTypeError("write one name, without spaces")
    return _name(text)
