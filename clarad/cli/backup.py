"""`clarad backup`: copies of an SQLite database."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from clarad import config
from clarad.cli import parts
from clarad.cli.migrate import make_state_dir


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = (
        "Copy an SQLite database, look at a copy, and put one in the database's place. A copy is\n"
        "one file that has everything in it: messages, runs and the hashes of tokens. For\n"
        "PostgreSQL use pg_dump and pg_restore."
    )
    subparsers = parser.add_subparsers(dest="part", metavar="PART", required=True)
    create = subparsers.add_parser("create", help="copy the database; a daemon that runs goes on")
    create.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a new file (default: one named after the time, in backups/ of the state directory)",
    )
    verify = subparsers.add_parser(
        "verify", help="read a copy from end to end, and say what is in it"
    )
    verify.add_argument("file", type=Path, metavar="FILE")
    restore = subparsers.add_parser(
        "restore", help="put a copy in the database's place; what was there is kept beside it"
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails, or the copy is damaged."""
    functions = {"create": _create, "verify": _verify, "restore": _restore}
    return parts.run_part(arguments, functions[arguments.part])


def make_backup(settings: config.Settings, file: Path | None = None) -> Path:
    """Copy the database to `file`, by default a new file in the state directory; return its path.

    Raises:
        StoreError: the database is not SQLite's, or the copy fails.
    """
    from clarad.config import files
    from clarad.store import StoreError, backup

    backup.require_file(settings.database_url)
    if file is None:
        file = settings.state_dir / "backups" / f"clarad-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.db"
        try:
            files.require_ours(file)
            files.make_directory(file.parent)
        except files.NotOurs as error:
            raise StoreError(str(error)) from None
        except OSError as error:
            raise StoreError(f"cannot make {file.parent}: {error.strerror}") from None
    backup.create(settings.database_url, file)
    return file


def _create(arguments: argparse.Namespace, settings: config.Settings) -> int:
    print(make_backup(settings, arguments.file))
    return 0


def _verify(arguments: argparse.Namespace, _settings: config.Settings) -> int:
    from clarad.store import backup
    from clarad.store.migrate import HEAD

    found = backup.verify(arguments.file)
    print(f"{arguments.file} is sound")
    print(f"revision  {found.revision} (this version works with {HEAD})")
    for table, count in found.rows.items():
        print(f"{count:8}  {table}")
    return 0


def _restore(arguments: argparse.Namespace, settings: config.Settings) -> int:
    from clarad.store import backup
    from clarad.store.engine import sqlite_file

    make_state_dir(settings)
    found, kept = backup.restore(settings.database_url, arguments.file)
    if kept is not None:
        print(f"what was there is kept in {kept}")
    messages = found.rows.get("clarad_messages", 0)
    print(
        f"{sqlite_file(settings.database_url)} is {arguments.file} from now on: revision "
        f"{found.revision}, {messages} messages"
    )
    return 0
