"""Databases with clarad's tables, for tests of what is done with them.

Migrations have tests of their own. Other tests get SQLite files that are copies of one that was
migrated once: to migrate takes longer than most of these tests do.
"""

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import Engine

from clarad.store import open_engine
from clarad.store.engine import make_sqlite
from clarad.store.migrate import is_new, require_head, upgrade


def migrate(engine: Engine) -> None:
    """Have clarad's tables in the database, as `require_head` does."""
    if is_new(engine):
        path = Path(str(engine.url.database))
        make_sqlite(path)
        path.write_bytes(_migrated_sqlite())
    else:
        require_head(engine, migrate=True)


@cache
def _migrated_sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "migrated.db")
        engine = open_engine(f"sqlite:///{path}")
        upgrade(engine)
        engine.dispose()  # what is in the log goes into the file
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        return path.read_bytes()
