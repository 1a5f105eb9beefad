"""Runs a blocking function of the database in a thread, and interrupts it when cancelled."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import trio
from sqlalchemy import Engine, event

from clarad.store.engine import cut

T = TypeVar("T")

AGAIN: Final = 0.05
"""Seconds between two interrupts: each ends only the statement that SQLite runs at the moment."""


async def interruptible(engine: Engine, function: Callable[[], T]) -> T:
    """Run a function in a thread that connects with this engine, and return its result.

    Cancelling makes its statements fail until the function has ended; what it has not committed is
    rolled back.
    """
    drivers: list[Any] = []

    def note(driver: Any, _record: Any) -> None:
        drivers.append(driver)

    def call() -> T | Exception:
        try:
            return function()
        except Exception as error:  # not raised if a cancellation has caused it
            return error

    ended = trio.Event()
    event.listen(engine, "connect", note)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupt_at_cancel, drivers, ended)
            with trio.CancelScope(shield=True):
                result = await trio.to_thread.run_sync(call)
            ended.set()
    finally:
        event.remove(engine, "connect", note)
    if isinstance(result, Exception):
        raise result
    return result


async def _interrupt_at_cancel(drivers: list[Any], ended: trio.Event) -> None:
    try:
        await ended.wait()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            while not ended.is_set():
                for driver in list(drivers):
                    _interrupt(driver)
                with trio.move_on_after(AGAIN):
                    await ended.wait()
        raise


def _interrupt(driver: Any) -> None:
    if isinstance(driver, sqlite3.Connection):
        with suppress(sqlite3.ProgrammingError):  # it is closed
            driver.interrupt()
    else:
        cut(driver)
