"""Migrates the database to the tables of this version, and back, with Alembic.

Alembic is imported only if there is a migration to run: a start on an up-to-date database reads one
row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import Connection, Engine, String, column, func, inspect, select, table

from clarad.store import vacuum
from clarad.store.engine import Damaged, StoreError, Unfit, errors_in_one_line
from clarad.store.models import HookRunRow, MessageRow, TaskRunRow

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

VERSION_TABLE: Final = "clarad_alembic_version"
HEAD: Final = "0008"
"""The revision that this version of clarad needs; a test compares it with the scripts."""

MIGRATION_BUDGET: Final = 3600.0
"""Seconds that a migration may ask systemd for at most."""

_MIGRATING: Final = int.from_bytes(b"clarad")
"""The advisory lock of a migration; all programs in a database use the same number."""


class Revision(NamedTuple):
    """One step of the schema; `state` is `applied` or `pending`."""

    id: str
    title: str
    state: str


def current_revision(engine: Engine) -> str | None:
    """Return the revision that the database is at, `None` if it has never been migrated.

    A database that is not there is not made.

    Raises:
        StoreError: it cannot be read, or it was made by a newer clarad.
    """
    if is_new(engine):
        return None
    with errors_in_one_line(), engine.connect() as connection:
        at = _read_revision(connection)
    if at not in (None, HEAD) and not any(_directory().glob(f"versions/{at}_*.py")):
        where = f" {engine.url.database}" if engine.dialect.name == "sqlite" else ""
        raise Unfit(
            f"the database{where} is at revision {at}, which this version does not know: it was "
            "made by a newer clarad; install that one, or roll the database back with it first"
        )
    return at


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = column("version_num", String)
    return connection.execute(select(version).select_from(table(VERSION_TABLE, version))).scalar()


def is_new(engine: Engine) -> bool:
    """Whether there is no database yet, which the first start will make.

    Raises:
        StoreError: there cannot be one where it is wanted.
    """
    if engine.dialect.name != "sqlite":
        return False
    path = Path(engine.url.database or "")
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    if nearest != path and not nearest.is_dir():
        raise StoreError(f"{nearest} is not a directory")
    return nearest != path


def is_behind(engine: Engine) -> bool:
    """Whether the database needs a migration.

    Raises:
        StoreError: it cannot be read, or it was made by a newer clarad.
    """
    return current_revision(engine) != HEAD


def require_head(engine: Engine, *, migrate: bool) -> str | None:
    """Make sure that the database is at `HEAD`; called before the daemon starts.

    Returns:
        The revision that it was at if it had to be migrated, else `None`.

    Raises:
        StoreError: it is behind and `migrate` is off, it is ahead, or a migration failed.
    """
    at = current_revision(engine)
    if at == HEAD:
        return None
    if not migrate:
        raise StoreError(
            f"the database is at revision {at or 'none'}, this version needs {HEAD}: "
            "run `clarad migrate` first"
        )
    return (at or "empty") if upgrade(engine) else None


def require_sound(engine: Engine) -> None:
    """Read all unfinished rows of an SQLite database at `HEAD`, so that damage fails the start.

    Recovery reads them again, page by page, when the daemon already accepts connections: too late
    for an exit status that says so.

    Raises:
        Damaged: a page or a row cannot be read.
        StoreError: the database fails.
    """
    if engine.dialect.name != "sqlite":
        return
    with errors_in_one_line(), engine.connect() as connection:
        try:
            for row, text in (
                (MessageRow, MessageRow.frame),
                (HookRunRow, HookRunRow.event),
                (TaskRunRow, TaskRunRow.caused_by),
            ):
                times = [value for value in row.__table__.columns if value.name.endswith("_at")]
                statement = select(func.length(text), *times).where(row.ended_at.is_(None))
                for _ in connection.execution_options(yield_per=1000).execute(statement):
                    pass
        except ValueError as error:  # a column does not hold a time
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            path = Path(engine.url.database or "")
            raise Damaged(path, f"{error}; quick_check: {found}") from None


def upgrade(engine: Engine, to: str = "head") -> list[Revision]:
    """Apply all pending migrations, each in a transaction of its own; return them.

    On PostgreSQL this waits for another process that migrates: of several daemons that start at
    once, one migrates, and the others find nothing pending.
    """
    from alembic import command

    with _alone(engine):
        vacuum.turn_on(engine)  # first: if there is no room for it, nothing has changed yet
        before = {revision.id for revision in history(engine) if revision.state == "applied"}
        with _alembic(engine) as config:
            command.upgrade(config, to)
        return [r for r in history(engine) if r.state == "applied" and r.id not in before]


def rollback(engine: Engine, steps: int = 1) -> list[Revision]:
    """Roll the last `steps` migrations back, with the data in their tables; return them."""
    from alembic import command

    with _alone(engine):
        applied = [revision for revision in history(engine) if revision.state == "applied"]
        if steps > len(applied):
            raise StoreError(f"there are only {len(applied)} migrations to roll back, not {steps}")
        with _alembic(engine) as config:
            command.downgrade(config, f"-{steps}")
        return applied[-steps:][::-1]


def create(engine: Engine, title: str) -> Path:
    """Write a new migration from the difference between the models and the database."""
    from alembic import command

    if not _is_checkout():
        raise StoreError("migrations are made in a checkout of clarad, not in an installed one")
    with _alembic(engine) as config:
        number = len(list(_scripts().walk_revisions())) + 1
        made = command.revision(config, title, autogenerate=True, rev_id=f"{number:04}")
    assert made is not None
    assert not isinstance(made, list)
    return Path(made.path)


def history(engine: Engine) -> list[Revision]:
    """Return every revision, the oldest first. A database that is not there is not made."""
    at = current_revision(engine)
    scripts = list(_scripts().walk_revisions())[::-1]
    applied = 0 if at is None else [script.revision for script in scripts].index(at) + 1
    return [
        Revision(script.revision, script.doc.rstrip("."), "applied" if n < applied else "pending")
        for n, script in enumerate(scripts)
    ]


def heads() -> list[str]:
    """Return the newest revisions of the scripts; more than one is a mistake in a checkout."""
    return list(_scripts().get_heads())


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.set_main_option("path_separator", "os")
    return config


def _directory() -> Path:
    """Where the scripts are: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _is_checkout() -> bool:
    return (_directory().parent / "pyproject.toml").is_file()


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Hold the lock of migrations within the block."""
    if engine.dialect.name != "postgresql":
        yield  # a state directory, and the database in it, has one daemon
        return
    with errors_in_one_line(), engine.connect() as connection:
        # A lock of the session, as Alembic has several transactions. It is released when the block
        # ends, however that happens.
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(select(func.pg_advisory_lock(_MIGRATING)))
        try:
            yield
        finally:
            connection.execute(select(func.pg_advisory_unlock(_MIGRATING)))


@contextmanager
def _alembic(engine: Engine) -> "Iterator[Config]":
    """Open a connection for Alembic's commands to run on."""
    from alembic.util import CommandError

    config = _config()
    try:
        with errors_in_one_line(), engine.connect() as connection:
            config.attributes["connection"] = connection
            yield config
    except CommandError as error:
        raise StoreError(str(error)) from error
