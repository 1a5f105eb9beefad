"""Remembers which database an installation uses, so that an empty one is not taken for a new one.

A disk that is not mounted, or a deleted file or write-ahead log, would look like a first start.
Only the place is remembered: another `DATABASE_URL` is another database.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import URL, Engine

from clarad.config import files
from clarad.store.engine import WAY_OUT, StoreError, Unfit
from clarad.store.migrate import current_revision

FILE_NAME: Final = "database"
"""Lies in the state directory."""


def require_known(engine: Engine, state_dir: Path) -> None:
    """Refuse an empty database where this installation has used one with its tables.

    Raises:
        Unfit: the database is empty.
        StoreError: the database cannot be read.
    """
    place = _place(engine.url, state_dir)
    if _remembered(state_dir) == place and current_revision(engine) is None:
        way_out = WAY_OUT if engine.dialect.name == "sqlite" else "restore it (pg_restore)"
        raise Unfit(
            f"the database {engine.url.database} is empty, and this installation has used it "
            f"before: {way_out}, or begin anew with `clarad migrate --new`"
        )


def remember(engine: Engine, state_dir: Path) -> None:
    """Note that this installation uses the database; raises `StoreError`."""
    place = _place(engine.url, state_dir)
    try:
        if _remembered(state_dir) != place:
            files.replace(state_dir / FILE_NAME, f"{place}\n")
    except files.Unwritable as error:
        raise StoreError(str(error)) from None


def _remembered(state_dir: Path) -> str | None:
    try:
        return (state_dir / FILE_NAME).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{state_dir / FILE_NAME}: {error.strerror}") from None


def _place(url: URL, state_dir: Path) -> str:
    """Say where a database is, without users and passwords."""
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        # A state directory may be moved, and its database with it.
        inside = path.is_relative_to(state_dir)
        return f"sqlite {path.relative_to(state_dir) if inside else path}"
    host, port = (value or url.query.get(name) or "" for name, value in _address(url))
    return f"postgresql {host}:{port}/{url.database}"


def _address(url: URL) -> tuple[tuple[str, str | int | None], ...]:
    return ("host", url.host), ("port", url.port)
