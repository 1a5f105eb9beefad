"""Alembic's entry: runs the migrations on one connection, handed in or opened from the settings."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from clarad.store.migrate import VERSION_TABLE
from clarad.store.models import Base


def _is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _to: Any) -> bool:
    """Tables of other programs in the same database are none of our business."""
    return kind != "table" or (name or "").startswith("clarad_")


def _render_type(kind: str, value: Any, _context: Any) -> str | Literal[False]:
    """Write the plain column type into a migration: it must not change with the models."""
    if kind == "type" and type(value).__module__.startswith("clarad."):
        return f"sa.{value.impl!r}"
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_object=_is_ours,
        render_item=_render_type,
        render_as_batch=True,
        # Alembic doubts SQLite here because of its driver; our engine emits BEGIN itself.
        transactional_ddl=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if (handed_in := context.config.attributes.get("connection")) is not None:
    _run(handed_in)
else:
    from clarad.config import load
    from clarad.store.engine import open_engine

    with open_engine(load()[0].database_url).connect() as opened:
        _run(opened)
