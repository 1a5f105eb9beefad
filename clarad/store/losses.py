"""What a rollback would delete, and whether a daemon uses the database."""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import (
    Engine,
    StaticPool,
    column,
    create_engine,
    func,
    inspect,
    select,
    table,
    text,
)

from clarad.store.engine import StoreError, errors_in_one_line
from clarad.store.lock import Taken
from clarad.store.migrate import history, upgrade

_LIVING = text(
    "SELECT address FROM clarad_daemons WHERE heir IS NULL AND expires_at > clock_timestamp()"
)

# Rolling back the table of attachments puts them into the messages again, if that table stays.
_PUT_BACK: Final = {"clarad_attachments": "clarad_messages"}

Shape = dict[str, set[str]]
"""Clarad's tables, and the columns of each."""


def require_nobody(engine: Engine) -> None:
    """Make sure that no daemon uses a PostgreSQL database; `lock_database` does that for SQLite.

    Raises:
        Taken: one does, or has been killed so lately that it may.
    """
    if engine.dialect.name != "postgresql":
        return
    with errors_in_one_line():
        if "clarad_daemons" not in _shape(engine):
            return
        with engine.connect() as connection:
            living = connection.scalars(_LIVING).all()
    if living:
        where = ", ".join(address or "one that starts" for address in living)
        raise Taken(
            f"daemons use the database ({where}); stop them first. One that was killed counts "
            "until its lease has ended, in five minutes at most"
        )


def losses(engine: Engine, steps: int) -> list[str]:
    """Return what goes with the last `steps` migrations: a line for each table or column in use.

    Raises:
        StoreError: there are not so many, or the database cannot be read.
    """
    applied = [revision.id for revision in history(engine) if revision.state == "applied"]
    if steps > len(applied):
        raise StoreError(f"there are only {len(applied)} migrations to roll back, not {steps}")
    with errors_in_one_line():
        return list(_losses(engine, _shape(engine), _shape_at(applied[: len(applied) - steps])))


def _losses(engine: Engine, now: Shape, then: Shape) -> Iterator[str]:
    with engine.connect() as connection:
        for name, columns in sorted(now.items()):
            rows = select(func.count()).select_from(table(name))
            if name not in then:
                if _PUT_BACK.get(name) not in then and (count := connection.scalar(rows)):
                    yield f"{name}: all {count} rows"
                continue
            for gone in sorted(columns - then[name]):
                if count := connection.scalar(rows.where(column(gone).is_not(None))):
                    yield f"{name}.{gone}: in {count} rows"


def _shape(engine: Engine) -> Shape:
    found = inspect(engine)
    return {
        name: {each["name"] for each in found.get_columns(name)}
        for name in found.get_table_names()
        if name.startswith("clarad_") and name != "clarad_alembic_version"
    }


def _shape_at(revisions: list[str]) -> Shape:
    """Return the tables after these migrations: they are made in memory."""
    if not revisions:
        return {}
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        upgrade(engine, revisions[-1])
        return _shape(engine)
    finally:
        engine.dispose()
