"""What `clarad hooks` and `clarad tasks` share: lists of runs, and what the daemon has loaded."""

import argparse
from datetime import datetime
from typing import Any, Final, Literal

from clarad import config
from clarad.adapters.operator import OperatorError
from clarad.cli import control, listing, parts, print_error
from clarad.cli.parts import CommandError
from clarad.protocol.control import Overview, Refused
from clarad.store.engine import sqlite_file
from clarad.store.history import Found, open_history

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1_000_000


def add_runs_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the options of a list of runs."""
    parts.add_json_option(parser)
    parser.add_argument(
        f"--{kind}", type=parts.name, metavar="NAME", help=f"only runs of this {kind}"
    )
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


def add_show(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the part that shows one run."""
    show = subparsers.add_parser("show", help="everything that is known of a run, with its output")
    show.add_argument("run_id", type=parts.name, metavar="RUN")
    parts.add_json_option(show)


def require_state(settings: config.Settings) -> None:
    """Raise `CommandError` if the database would be in a state directory that does not exist."""
    if sqlite_file(settings.database_url) is not None and not settings.state_dir.is_dir():
        raise CommandError(
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
        raise CommandError(
            f"there is no run {arguments.run_id!r}; `clarad {of} runs` lists the runs, and "
            f"`clarad {of} list` the {of}"
        )
    listing.show_one(found, as_json=arguments.json)
    return 0


def in_force(
    settings: config.Settings, of: Literal["hooks", "tasks"]
) -> list[dict[str, Any]] | None:
    """Return the rows of what the running daemon has loaded; print what a reload would change.

    Print why and return `None` if no daemon answers.
    """
    try:
        done = control.ask(settings, Overview("overview", of))
    except OperatorError as error:
        print_error(f"{error}; this is what the files say")
        return None
    except Refused as refused:
        print_error(*refused.problems)
        return None
    print_error(*filter(None, [done.text]))
    rows = done.rows or []
    for row in rows:
        if row.get("next_at") is not None:
            row["next_at"] = datetime.fromisoformat(row["next_at"])
    return rows


def last(run: Found | None) -> dict[str, Any]:
    """Return the columns that show the last run of a hook or task."""
    run = run or {}
    return {"last": run.get("state"), "last_at": run.get("due_at"), "last_run": run.get("run")}


def _count(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LIMIT))
    if not is_number or not 1 <= int(text) <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"write a whole number from 1 to {MAX_LIMIT}")
    return int(text)
