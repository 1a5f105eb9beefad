"""`clarad migrate`: the database's tables."""

import argparse
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from clarad import config
from clarad.cli import confirmed, print_error
from clarad.config import files

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from clarad.store.migrate import Revision


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = (
        "Bring the database to the tables that this version needs. Only tables named clarad_*\n"
        "are touched."
    )
    parser.add_argument(
        "--before-run",
        action="store_true",
        help="log what fails as the daemon does, and leave what no other try mends, such as wrong "
        "settings or a damaged database, to be said by the `clarad run` that follows",
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="begin anew where the database was used before and is empty now",
    )
    parts = parser.add_subparsers(dest="part", metavar="PART")
    parts.add_parser("upgrade", help="apply what is pending (the default)")
    parts.add_parser("status", help="where the database is, and what is pending")
    parts.add_parser("history", help="all migrations, the newest first")
    parts.add_parser("heads", help="the newest migrations of this version")
    rollback = parts.add_parser("rollback", help="take migrations back, with the data they hold")
    rollback.add_argument("steps", nargs="?", type=int, default=1, help="how many (default: 1)")
    rollback.add_argument("--yes", action="store_true", help="do not ask")
    create = parts.add_parser("create", help="write a migration from the models (in a checkout)")
    create.add_argument("title", help="what it does, in a few words")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails."""
    if arguments.before_run:
        return _before_run(arguments)
    from clarad.store import StoreError

    try:
        return _run(arguments, config.load()[0])
    except config.ConfigError as error:
        print_error(*error.problems)
    except StoreError as error:
        print_error(str(error))
    return 1


def _before_run(arguments: argparse.Namespace) -> int:
    """Run as ExecStartPre= of the unit; return 0 also for errors that no retry can fix.

    systemd retries a failed ExecStartPre= whatever its status. So `clarad run`, whose status can
    prevent a restart, reports such errors.
    """
    from clarad import log
    from clarad.cli.run import Exit, refuse, set_up_log
    from clarad.store import StoreError, Taken, Unfit
    from clarad.systemd import catalogue

    try:
        settings, _ = config.load()
        set_up_log(settings)
        return _run(arguments, settings)
    except (config.ConfigError, Taken, Unfit):
        return os.EX_OK
    except StoreError as error:
        return refuse(Exit.STORE, catalogue.STORE_UNUSABLE, str(error))
    finally:
        log.close()


def _run(arguments: argparse.Namespace, settings: config.Settings) -> int:
    parts = {
        "status": _show,
        "history": _show,
        "heads": _show,
        "create": _create,
        "rollback": _rollback,
    }
    return parts.get(arguments.part, _upgrade)(arguments, settings)


def _show(arguments: argparse.Namespace, settings: config.Settings) -> int:
    from clarad.store import migrate

    with _open(settings, read_only=True) as engine:
        match arguments.part:
            case "status":
                _print_status(migrate.history(engine), migrate.HEAD)
            case "history":
                for revision in reversed(migrate.history(engine)):
                    print(f"{revision.id}  {revision.state:7}  {revision.title}")
            case "heads":
                print("\n".join(migrate.heads()))
    return 0


def _create(arguments: argparse.Namespace, settings: config.Settings) -> int:
    from clarad.store import migrate

    with _open(settings) as engine:
        print(migrate.create(engine, arguments.title))
    return 0


def _upgrade(arguments: argparse.Namespace, settings: config.Settings) -> int:
    from clarad.store import lock_database, migrate
    from clarad.store.known import require_known

    with _open(settings, read_only=True) as engine:
        if not arguments.new:
            require_known(engine, settings.state_dir)
        if all(revision.state == "applied" for revision in migrate.history(engine)):
            print("nothing to do")
            return 0
    make_state_dir(settings)
    with lock_database(settings.database_url), _open(settings) as engine:
        for revision in _apply(engine):
            print(f"applied {revision.id}  {revision.title}")
    return 0


def _rollback(arguments: argparse.Namespace, settings: config.Settings) -> int:
    from clarad.cli.backup import make_backup
    from clarad.store import lock_database, migrate
    from clarad.store.engine import sqlite_file
    from clarad.store.losses import losses, require_nobody

    if arguments.steps < 1:
        print_error("rollback takes a number from 1")
        return 1
    make_state_dir(settings)
    with lock_database(settings.database_url), _open(settings) as engine:
        require_nobody(engine)
        lost = losses(engine, arguments.steps)
        for line in lost or ["no row"]:
            print(f"deletes {line}", flush=True)
        if not (arguments.yes or confirmed()):
            return 1
        if sqlite_file(settings.database_url) is not None:
            print(f"a backup of what was there is {make_backup(settings)}")
        for revision in migrate.rollback(engine, arguments.steps):
            print(f"rolled back {revision.id}  {revision.title}")
    return 0


def make_state_dir(settings: config.Settings) -> None:
    """Make the state directory if the database goes there; raises `StoreError`."""
    from clarad.store import StoreError
    from clarad.store.engine import sqlite_file

    path = sqlite_file(settings.database_url)
    if path is None or path.parent != settings.state_dir:
        return
    try:
        files.require_ours(path)
        files.make_directory(settings.state_dir)
    except files.NotOurs as error:
        raise StoreError(str(error)) from None
    except OSError as error:
        raise StoreError(f"cannot make {settings.state_dir}: {error.strerror}") from None


@contextmanager
def _open(settings: config.Settings, *, read_only: bool = False) -> "Iterator[Engine]":
    from clarad.store import open_engine

    engine = open_engine(settings.database_url, read_only=read_only)
    try:
        yield engine
    finally:
        engine.dispose()


def _apply(engine: "Engine") -> "list[Revision]":
    """Apply pending migrations; under systemd, extend the start timeout meanwhile."""
    from clarad.store import migrate
    from clarad.systemd import handover
    from clarad.systemd.extension import extending
    from clarad.systemd.notify import Notifier

    with (
        closing(Notifier(handover.receive().notify_socket)) as notifier,
        extending(notifier, migrate.MIGRATION_BUDGET, "migrating the database"),
    ):
        return migrate.upgrade(engine)


def _print_status(history: "list[Revision]", head: str) -> None:
    applied = [revision for revision in history if revision.state == "applied"]
    pending = [revision for revision in history if revision.state == "pending"]
    print(f"revision  {applied[-1].id if applied else 'none'}")
    print(f"head      {head}")
    print(f"pending   {len(pending) or 'nothing'}")
    for revision in pending:
        print(f"  {revision.id}  {revision.title}")
