"""What `clarad hooks` and `clarad tasks` share."""

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal

from clarad import config
from clarad.adapters.operator import OperatorError
from clarad.automation.config.values import MAX_NAME
from clarad.cli import control, fail, listing
from clarad.protocol.control import Overview
from clarad.store import StoreError
from clarad.store.engine import sqlite_file
from clarad.store.history import Found, open_history

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1_000_000


class Unusable(Exception):  # noqa: N818 - it is an answer, not a fault
    """What was asked for cannot be done; the text says why."""


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Add what every list takes."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line")


def add_runs_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add what lists of runs take."""
    add_list_options(parser)
    parser.add_argument(f"--{kind}", type=word, metavar="NAME", help=f"only runs of this {kind}")
    parser.add_argument(
        "--failed", action="store_true", help="only those that failed, timed out or were cut off"
    )
    parser.add_argument(
        "--limit",
        type=_count,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="how many, the newest first (default: %(default)s)",
    )


def add_show(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the part that shows one run."""
    show = parts.add_parser("show", help="everything that is known of a run, with its output")
    show.add_argument("run_id", type=word, metavar="RUN")
    add_list_options(show)


def require_state(settings: config.Settings) -> None:
    """Raise `Unusable` where nothing can have run: there is not even a place to keep it in."""
    if sqlite_file(settings.database_url) is not None and not settings.state_dir.is_dir():
        raise Unusable(
            f"there is no state directory {settings.state_dir}; set CLARA_STATE_DIR to that of the "
            "daemon, or start one with `clarad run`"
        )


def show(arguments: argparse.Namespace, settings: config.Settings) -> int:
    """Show one run."""
    require_state(settings)
    with open_history(settings.database_url) as history:
        found = history.find(arguments.run_id)
    if found is None:
        of = arguments.command
        raise Unusable(
            f"there is no run {arguments.run_id!r}; `clarad {of} runs` lists the runs, and "
            f"`clarad {of} list` the {of}"
        )
    listing.show_one(found, as_json=arguments.json)
    return 0


def in_force(
    settings: config.Settings, of: Literal["hooks", "tasks"]
) -> list[dict[str, Any]] | None:
    """Return what the running daemon has in force, and say what a reload would change.

    `None`, and it is said why, if no daemon can be asked.
    """
    try:
        done = control.ask(settings, Overview("overview", of))
    except OperatorError as error:
        fail(f"{error}; this is what the files say")
        return None
    if done is None:
        return None
    fail(*filter(None, [done.text]))
    rows = done.rows or []
    for row in rows:
        if row.get("next_at") is not None:
            row["next_at"] = datetime.fromisoformat(row["next_at"])
    return rows


def last(run: Found | None) -> dict[str, Any]:
    """Return how something ran last, for a list of hooks or tasks."""
    run = run or {}
    return {"last": run.get("state"), "last_at": run.get("due_at"), "last_run": run.get("run")}


def guarded(
    arguments: argparse.Namespace, part: Callable[[argparse.Namespace, config.Settings], int]
) -> int:
    """Do one part of a command; every reason why it cannot be done is one line."""
    try:
        return part(arguments, config.load()[0])
    except config.ConfigError as error:
        fail(*error.problems)
    except (StoreError, OperatorError, Unusable) as error:
        fail(str(error))
    return 1


def word(text: str) -> str:
    """Read what something is called on the command line: as long as names are, and in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # sys.argv keeps such bytes as lone surrogates
        raise argparse.ArgumentTypeError("write it in UTF-8") from None
    if not 0 < len(text) <= MAX_NAME:
        raise argparse.ArgumentTypeError(f"write 1 to {MAX_NAME} characters")
    return text


def _count(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LIMIT))
    if not is_number or not 1 <= int(text) <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"write a whole number from 1 to {MAX_LIMIT}")
    return int(text)
