"""The process: one epoch of the daemon after another, until a signal ends it."""

import faulthandler
import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from clarad import log, responders
from clarad.app.daemon import Daemon
from clarad.automation.definitions import Definitions
from clarad.config import Settings, discovery, files, instance
from clarad.config.envfile import Overlay
from clarad.nurseries.sandboxes import Sandboxes
from clarad.process import shell
from clarad.protocol.control import Refused
from clarad.store import LeaseLost, StoreError, interruptible, lock_database, open_engine, reach
from clarad.store.known import remember, require_known
from clarad.store.lock import hold_log
from clarad.store.migrate import MIGRATION_BUDGET, require_head, require_sound
from clarad.systemd import catalogue
from clarad.systemd.extension import extending
from clarad.systemd.handover import NOTHING, Handover
from clarad.systemd.notify import Notifier
from clarad.version import VERSION

logger = logging.getLogger(__name__)

HELD_INTERVAL: Final = 2.0
"""Seconds between two checks that the state directory and the database file are still there."""

REACH_RETRY: Final = 1.0
"""Seconds between two attempts to reach the database."""


def run(
    settings: Settings,
    defined: Definitions,
    overlay: Overlay,
    handed: Handover = NOTHING,
) -> None:
    """Run the daemon until it is told to stop; a reload reads `overlay` again.

    `handed` is what systemd has handed over.

    Raises:
        instance.AlreadyRunning: another daemon has locked the state directory.
        StoreError: the database cannot be used, or is another daemon's (`Taken`).
        CannotListen: the address cannot be bound.
        files.Unwritable: a file of the state directory cannot be written.
        files.Gone: the state directory or the database was deleted.
        Exception: a part of the daemon keeps failing.
    """
    if handed.watchdog is not None:
        faulthandler.enable()  # a loop that is stuck cannot log its stacks when SIGABRT comes
    with (
        instance.lock_state_dir(settings.state_dir) as state,
        lock_database(settings.database_url) as database,
    ):
        engine = open_engine(settings.database_url)
        try:
            _leave_imports_uncollected()
            held = [file for file in (state, database) if file is not None]
            trio.run(_run_until_signal, settings, defined, overlay, engine, handed, held)
        finally:
            engine.dispose()


def _leave_imports_uncollected() -> None:
    """Keep the garbage collector from walking through all imported modules, again and again.

    A collection of the oldest generation would block the event loop for 50 ms. This is done once,
    before the loop starts: frozen objects are never collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _run_until_signal(
    settings: Settings,
    defined: Definitions,
    overlay: Overlay,
    engine: Engine,
    handed: Handover,
    held: Sequence[files.Held],
) -> None:
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        prepare = partial(_prepare, settings, engine, handed)
        going_on = await _run_unless_signalled(signals, prepare)
        # The engine keeps a connection from here on.
        held = [file for file in (*held, hold_log(settings.database_url)) if file is not None]
        # Where systemd has started this process it starts the next: what it keeps for us it hands
        # over to a process.
        is_first = True
        while going_on:
            daemon = _build(settings, defined, overlay, engine, handed)
            going_on = False
            try:
                await _run_daemon(daemon, signals, hangups, held)
            except* (StoreError, SQLAlchemyError) as failures:
                # A first epoch that finds no database has nothing to go back to.
                if handed != NOTHING or (is_first and failures.split(LeaseLost)[1] is not None):
                    raise
                settings, defined = daemon.in_force
                going_on = not daemon.is_stopping and await _run_unless_signalled(
                    signals, partial(_reach, engine)
                )
            is_first = False
    logger.log(log.NOTICE, "stopped", extra=catalogue.DAEMON_STOPPED.about())


def _build(
    settings: Settings, defined: Definitions, overlay: Overlay, engine: Engine, handed: Handover
) -> Daemon:
    sandboxes = None
    if settings.sandbox.mode != "off":
        sandboxes = Sandboxes(settings.sandbox, instance.label(settings.state_dir))
    responder = responders.make(settings, sandboxes)
    return Daemon(settings, engine, responder, defined, sandboxes, overlay, handed)


async def _run_daemon(
    daemon: Daemon,
    signals: AsyncIterator[int],
    hangups: AsyncIterator[int],
    held: Sequence[files.Held],
) -> None:
    """Run the daemon until a signal stops it, or it loses its lease or a file that it holds."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, held)
        nursery.start_soon(_stop_at_signal, signals, daemon)
        # Not `nursery.start`: a signal may end the daemon before it listens.
        await daemon.run(_Listening(nursery, daemon, hangups))
        nursery.cancel_scope.cancel("stopped")


async def _watch(held: Sequence[files.Held]) -> None:
    """Raise `files.Gone` once one of the files is deleted: later writes to it would be lost."""
    while True:
        await trio.sleep(HELD_INTERVAL)
        for file in held:
            await trio.to_thread.run_sync(file.require)


class _Listening:
    """What follows when the daemon listens: the task status that it is run with."""

    def __init__(self, nursery: trio.Nursery, daemon: Daemon, hangups: AsyncIterator[int]) -> None:
        self._nursery = nursery
        self._daemon = daemon
        self._hangups = hangups

    def started(self, value: tuple[str, int] | None = None) -> None:
        """Say where, and reload at SIGHUP from here on."""
        assert value is not None
        settings = self._daemon.in_force[0]
        url = discovery.url(*value, tls=settings.gateway_tls_cert is not None)
        logger.log(
            log.NOTICE,
            "listening on %s; now type in another terminal: %s chat",
            url,
            _how_called(settings.state_dir),
            extra=catalogue.DAEMON_STARTED.about(url=url, version=VERSION),
        )
        self._nursery.start_soon(_reload_at_signal, self._hangups, self._daemon)


async def _stop_at_signal(signals: AsyncIterator[int], daemon: Daemon) -> None:
    number = await anext(signals)
    daemon.request_stop()
    name = signal.Signals(number).name
    stopping = catalogue.DAEMON_STOPPING.about(signal=name)
    logger.log(log.NOTICE, "%s: stopping", name, extra=stopping)
    await anext(signals)
    about = catalogue.DAEMON_STOPPING.about()
    logger.warning("second signal: stopping at once", extra=about)
    daemon.stop_at_once()


async def _run_unless_signalled(
    signals: AsyncIterator[int], work: Callable[[], Awaitable[None]]
) -> bool:
    """Run `work` to its end and return `True`; a signal cancels it, and returns `False`."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_at_signal, signals, scope)
            await work()
        nursery.cancel_scope.cancel("done")
    # Not `cancelled_caught`: the signal may come in the step in which the work ends.
    return not scope.cancel_called


async def _prepare(settings: Settings, engine: Engine, handed: Handover) -> None:
    """End what an earlier daemon has left running, and migrate the database to this version."""
    await _end_leftovers(settings.state_dir)
    with (
        closing(Notifier(handed.notify_socket)) as notifier,
        extending(notifier, MIGRATION_BUDGET, "migrating the database"),
    ):
        before = await interruptible(engine, partial(_prepare_database, engine, settings))
    if before is not None:
        about = catalogue.MIGRATED.about(revision=before)
        logger.log(log.NOTICE, "migrated the database (it was: %s)", before, extra=about)


def _prepare_database(engine: Engine, settings: Settings) -> str | None:
    """Migrate the database and check it; return its old revision, if it was behind."""
    require_known(engine, settings.state_dir)
    before = require_head(engine, migrate=settings.auto_migrate)
    require_sound(engine)
    remember(engine, settings.state_dir)
    return before


async def _reach(engine: Engine) -> None:
    """Wait until the database answers."""
    about = catalogue.LEASE_LOST.about()
    logger.warning("beginning a new epoch, as soon as the database answers", extra=about)
    while True:
        try:
            return await interruptible(engine, partial(reach, engine))
        except StoreError as error:
            logger.warning("the database does not answer yet: %s", error, extra=about)
            await trio.sleep(REACH_RETRY)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel("a signal")


async def _end_leftovers(state_dir: Path) -> None:
    """End what a killed daemon has left running: its runs are down as interrupted from here on."""
    ours = instance.claimant(state_dir)
    shell.set_instance(ours)
    if ended := await shell.end_leftovers(ours):
        about = catalogue.LEFTOVERS_ENDED.about(processes=ended)
        logger.warning("ended %d processes that the last daemon had left", ended, extra=about)


async def _reload_at_signal(signals: AsyncIterator[int], daemon: Daemon) -> None:
    async for _ in signals:
        with suppress(Refused):  # the log has it
            await daemon.operations.reload()


def _how_called(state_dir: Path) -> str:
    """Return what to type in another terminal for a command that finds this daemon."""
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        program = f"{Path(sys.executable).name} -m clarad"
    elif program != Path(program).name and not (here := os.path.relpath(program)).startswith(".."):
        program = here
    if not os.environ.get("CLARA_STATE_DIR"):
        return program
    return f"CLARA_STATE_DIR={shlex.quote(str(state_dir))} {program}"
