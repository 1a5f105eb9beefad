"""Gives the free pages of an SQLite file back to the disk; PostgreSQL does that by itself."""

import logging
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine

from clarad.store.engine import StoreError, errors_in_one_line

log = logging.getLogger(__name__)

PAGES: Final = 256
"""Pages that one transaction gives back; each may have to be moved."""

STAYS_FREE: Final = 10
"""One in so many pages may be free: the rows that come next need them."""

_MIB: Final = 2**20


def turn_on(engine: Engine) -> None:
    """Rewrite the file of an older clarad once, so that `shrink` can cut its end off. Blocks.

    It takes half a minute for each GiB, and twice the room meanwhile.

    Raises:
        StoreError: there is no room for that, or it fails; nothing has changed.
    """
    if engine.dialect.name != "sqlite":
        return
    with errors_in_one_line(), engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        (mode,) = driver.execute("PRAGMA auto_vacuum").fetchone()
        (pages,) = driver.execute("PRAGMA page_count").fetchone()
        if mode or not pages:
            return
        path = Path(str(engine.url.database))
        size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
        needs = (
            f"{path} has to be written anew once, which takes {2 * size / _MIB:.0f} MiB of room in "
            f"{path.parent} and {size / _MIB:.0f} MiB where SQLite has its temporary files"
        )
        if free < 2 * size:
            raise StoreError(f"{needs}: there are {free / _MIB:.0f} MiB; make room for it")
        log.info("writing %s anew, with its %.0f MiB", path, size / _MIB)
        try:
            driver.execute("VACUUM")  # with the mode that `engine` has asked for
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{needs}: {error}") from error


def shrink(connection: Connection) -> bool:
    """Cut some free pages off the file, if it has many; return whether there are more."""
    if connection.dialect.name != "sqlite":
        return False
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    (pages,) = driver.execute("PRAGMA page_count").fetchone()
    (free,) = driver.execute("PRAGMA freelist_count").fetchone()
    surplus = free - pages // STAYS_FREE
    if surplus <= 0:
        return False
    # It does a page with each step.
    driver.execute(f"PRAGMA incremental_vacuum({min(surplus, PAGES)})").fetchall()
    (left,) = driver.execute("PRAGMA freelist_count").fetchone()
    return bool(left < free)
