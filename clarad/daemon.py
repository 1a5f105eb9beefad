"""The composition root: builds the parts, hands them to each other, runs the tree, and ends it."""

import fcntl
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from clarad import __version__, log, responders
from clarad.access import Door
from clarad.config import Settings
from clarad.events import Bus, EventType
from clarad.nodes import Nodes
from clarad.nurseries.connection import CLOSE_TIMEOUT, Connection
from clarad.nurseries.gateway import LINGER, Gateway
from clarad.nurseries.sessions import Sessions
from clarad.nurseries.supervisor import Supervisor
from clarad.store import Messages, Writer, open_engine
from clarad.store.migrate import require_head

logger = logging.getLogger(__name__)

CANCEL_BUDGET: Final = 10.0
"""Seconds from the end of the drain until every cancelled message has ended and is stored."""

ADDRESS_FILE: Final = "gateway.json"
"""Where the daemon listens, for `clarad chat` and `send`; lies in the state directory."""


class AlreadyRunning(Exception):  # noqa: N818 - it is an answer, not a fault
    """Another daemon uses the state directory; the text says which."""


def run(settings: Settings) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        AlreadyRunning: the state directory is another daemon's.
        StoreError: the database cannot be used.
        CannotListen: the address cannot be bound.
        Exception: a part of the daemon keeps failing.
    """
    with _only_one(settings.state_dir):
        engine = open_engine(settings.database_url)
        if (before := require_head(engine, migrate=settings.auto_migrate)) is not None:
            logger.info("migrated the database (it was: %s)", before)
        try:
            trio.run(_Daemon(settings, Writer(engine)).run, strict_exception_groups=True)
        finally:
            engine.dispose()


class _Daemon:
    """The parts, while the daemon runs."""

    def __init__(self, settings: Settings, writer: Writer) -> None:
        self._settings = settings
        self._writer = writer
        self._bus = Bus()
        self._nodes = Nodes()
        self._messages = Messages(writer)

    async def run(self) -> None:
        """Start everything in order, serve, and stop in reverse order."""
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
            self._bus.subscribe(log.logged_types()) as events,
        ):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(nursery)
                await supervisor.start("event log", partial(log.write_events, events))
                sessions, gateway = await self._start(supervisor)
                number = await anext(signals)
                logger.info("%s: stopping", signal.Signals(number).name)
                await self._stop(supervisor, sessions, gateway, signals)
                nursery.cancel_scope.cancel("stopped")
        logger.info("stopped")

    async def _start(self, supervisor: Supervisor) -> tuple[Sessions, Gateway]:
        settings = self._settings
        sessions = Sessions(
            session_timeout=settings.session_timeout,
            message_timeout=settings.message_timeout,
            bus=self._bus,
            nodes=self._nodes,
            store=self._messages,
            responder=responders.make(settings),
        )
        door = Door(settings.gateway_secret, settings.gateway_allowed_origins)
        gateway = Gateway(
            settings.gateway_host,
            settings.gateway_port,
            door=door,
            max_connections=settings.gateway_max_connections,
            make_connection=partial(
                Connection, door=door, nodes=self._nodes, desk=sessions, bus=self._bus
            ),
        )
        await supervisor.start("store", self._writer.run)
        await supervisor.start("sessions", sessions.run)
        await sessions.recover(await self._messages.unfinished())
        host, port = await supervisor.start("gateway", gateway.run)
        _leave_alone_what_stays()
        self._announce(host, port)
        return sessions, gateway

    def _announce(self, host: str, port: int) -> None:
        address = {"host": host, "port": port, "pid": os.getpid()}
        _write_whole(self._settings.state_dir / ADDRESS_FILE, json.dumps(address) + "\n")
        self._bus.publish(
            EventType.GATEWAY_STARTUP, data={"host": host, "port": port, "version": __version__}
        )
        shown = f"[{host}]" if ":" in host else host
        logger.info(
            "listening on ws://%s:%d; now type in another terminal: %s chat",
            shown,
            port,
            _how_called(),
        )

    async def _stop(
        self,
        supervisor: Supervisor,
        sessions: Sessions,
        gateway: Gateway,
        signals: AsyncIterator[int],
    ) -> None:
        """Refuse, drain, cancel the rest, say good-bye, flush. Bounded by the budgets above."""
        gateway.stop_listening()
        (self._settings.state_dir / ADDRESS_FILE).unlink(missing_ok=True)
        await self._drain(sessions, signals)
        sessions.stop()
        with trio.move_on_after(CANCEL_BUDGET) as limit:
            await sessions.drained()
        if limit.cancelled_caught:
            sessions.give_up()
        await supervisor.stop("sessions")
        self._bus.publish(EventType.GATEWAY_SHUTDOWN)
        gateway.close_all()
        with trio.move_on_after(CLOSE_TIMEOUT + LINGER):
            await supervisor.ended("gateway")
        await supervisor.stop("gateway")
        await supervisor.stop("store")

    async def _drain(self, sessions: Sessions, signals: AsyncIterator[int]) -> None:
        """Let messages end by themselves, until the timeout or a second signal."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + self._settings.drain_timeout
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            await sessions.drained()
            nursery.cancel_scope.cancel("drained")


def _leave_alone_what_stays() -> None:
    """Keep the garbage collector from walking through everything that was imported, for ever.

    A collection of the oldest generation costs 50 ms then, in the middle of somebody's answer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    logger.warning("second signal: stopping at once")
    scope.cancel("second signal")


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for this process; the kernel lets go when the process ends."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / "clarad.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AlreadyRunning(
            f"cannot write to {state_dir}: {error.strerror}; set CLARA_STATE_DIR to a directory "
            "that the daemon owns"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise AlreadyRunning(
            f"another clarad (process {pid or 'unknown'}) uses {state_dir}; stop it, or set "
            "CLARA_STATE_DIR"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    try:
        yield
    finally:
        os.close(lock)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds all of it or none."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def _how_called() -> str:
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return f"{Path(sys.executable).name} -m clarad"
    here = os.path.relpath(program)
    return program if program == Path(program).name or here.startswith("..") else here
