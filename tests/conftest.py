"""A real daemon for each test: real sockets, a real database, and a responder under control."""

import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import hypothesis
import pytest
import trio
from sqlalchemy import Engine
from trio.testing import MockClock

from clarad import log
from clarad.app.daemon import Daemon
from clarad.automation.definitions import NOTHING, Definitions
from clarad.config import Settings
from clarad.events import Event, EventType
from clarad.nurseries.sandboxes import Sandboxes
from clarad.responders import Responder
from clarad.responders.tools import ToolUser
from clarad.store import open_engine
from clarad.systemd.handover import NOTHING as NOTHING_HANDED
from clarad.systemd.handover import Handover
from tests import daemon_process, peer
from tests.daemon_process import Marker
from tests.installation import Console, Installation
from tests.migrated import migrate
from tests.peer import Peer
from tests.postgres import BACKENDS, database
from tests.recorder import recording
from tests.sandbox import engines
from tests.scripted import Scripted
from tests.stalls import watched
from tests.store.daemons import Daemon as Sharer
from tests.store.daemons import Share

pytest_plugins = ["tests.deadline"]

EMPTY = "got empty parameter set"

PROCESSES = (
    daemon_process.Process,
    daemon_process.clarad,
    daemon_process.daemon,
    Installation,
    Console,
)
"""What tests start clarad as a process with."""

WEIGHTS: Final = {"soak": 500, "engine": 30, "process": 30, "postgres": 5}
"""About how many tenths of a second a test with this marker takes; others take one."""

hypothesis.settings.register_profile("quick", max_examples=20)


def pytest_configure() -> None:
    """Have Ctrl-C end the tests' processes also where it is ignored, as below `make test &`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of modules that start processes; drop what pytest would skip.

    That is a test for each engine that answers, and none does. The files that take longest come
    first, so that no worker is left with one of them when the others have ended.
    """
    items[:] = [
        item
        for item in items
        if not any(
            str(mark.kwargs.get("reason", "")).startswith(EMPTY)
            for mark in item.iter_markers("skip")
        )
    ]
    for item in items:
        assert isinstance(item, pytest.Function)
        known = vars(item.module).values()
        if any(thing is tool for thing in known for tool in PROCESSES):
            item.add_marker("process")
    weights = Counter[Path]()
    for item in items:
        markers = {mark.name for mark in item.iter_markers()}
        weights[item.path] += max((WEIGHTS[name] for name in WEIGHTS.keys() & markers), default=1)
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Give each test the levels that there were before: a reload sets those of the process."""
    loggers = [logging.getLogger(name) for name in (None, log.OUTPUT)]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(params=engines.only(*engines.ANSWERING), scope="session")
def mode(request: pytest.FixtureRequest) -> str:
    """Each engine of the sandboxes."""
    name: str = request.param
    return name


@dataclass
class Running:
    """A daemon that runs, and what a test does with it."""

    daemon: Daemon
    responder: Scripted  # answers, unless there are sandboxes: then the tools do
    url: str
    host: str
    port: int
    settings: Settings
    nursery: trio.Nursery
    events: trio.MemoryReceiveChannel[Event]
    peers: list[Peer] = field(default_factory=list)

    async def connect(self, headers: Any = ()) -> Peer:
        connection = await peer.connect(self.nursery, self.url, headers)
        self.peers.append(connection)
        return connection

    async def node(self, node_id: str = "node-1", capabilities: Any = ("streaming",)) -> Peer:
        """Return a connection that is registered."""
        connection = await self.connect()
        await connection.register(node_id, capabilities)
        return connection

    async def event(self, kind: EventType) -> Event:
        """Wait for an event of this type; the ones before it are dropped."""
        with trio.fail_after(10):
            async for event in self.events:
                if event.type is kind:
                    return event
        raise AssertionError("the daemon has ended")

    def events_of(self, kind: EventType) -> list[Event]:
        """Return the events of this type that are there already; the others are dropped."""
        found = []
        with suppress(trio.WouldBlock):
            while True:
                if (event := self.events.receive_nowait()).type is kind:
                    found.append(event)
        return found


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def clock() -> MockClock:
    """A clock that runs at its usual speed, and that a test can put forward."""
    return MockClock(rate=1)


@pytest.fixture
async def start(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start daemons; keyword arguments are settings. They end with the test.

    The test fails if they hold the loop for longer than `tests.stalls` allows.
    """
    defaults: dict[str, Any] = {
        "database_url": f"sqlite:///{tmp_path}/clarad.db",
        "gateway_port": 0,
        "drain_timeout": 10,
    }
    started: list[Running] = []
    with watched() as stalls, ExitStack() as stack:

        async def start_one(
            defined: Definitions = NOTHING, handed: Handover = NOTHING_HANDED, **settings: Any
        ) -> Running:
            # Two daemons at once share a database at most.
            state_dir = tmp_path / f"state-{len(started)}"
            chosen = Settings(**{"state_dir": state_dir} | defaults | settings)
            chosen.state_dir.mkdir(exist_ok=True)
            engine = open_engine(chosen.database_url)
            stack.callback(engine.dispose)
            await trio.to_thread.run_sync(migrate, engine)
            scripted = Scripted()
            sandboxes, responder = None, cast(Responder, scripted)
            if chosen.sandbox.mode != "off":
                sandboxes = Sandboxes(chosen.sandbox, engines.keeper_name())
                responder = ToolUser(sandboxes)
            daemon = Daemon(chosen, engine, responder, defined, sandboxes, handed=handed)
            events = stack.enter_context(recording(daemon.bus)).events
            host, port = await nursery.start(daemon.run)
            url = f"ws://{host}:{port}"
            one = Running(daemon, scripted, url, host, port, chosen, nursery, events)
            started.append(one)
            return one

        yield start_one
        for connection in [peer for one in started for peer in one.peers]:
            await connection.drop()
        nursery.cancel_scope.cancel("the test has ended")
    assert not stalls.found, "held the loop:\n" + "\n".join(stalls.found)


@pytest.fixture
async def running(start: Start) -> Running:
    """A daemon with the default settings."""
    return await start()


@pytest.fixture
def here(tmp_path: Path) -> Installation:
    """An installation of the test's own; nothing of it runs."""
    return Installation(tmp_path)


@pytest.fixture
def clarad(
    here: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """The commands of that installation."""
    return Console(here, monkeypatch, capsys)


@pytest.fixture
def marker() -> Iterator[Marker]:
    """End what a failing test has left."""
    made = Marker()
    yield made
    for pid in made.alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- databases -----------------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the test's own."""
    with database(request.param, tmp_path, request.config) as url:
        yield url


@pytest.fixture
def connect() -> Iterator[Callable[[str], Engine]]:
    """Make clarad's engines for URLs; they are closed when the test ends."""
    with ExitStack() as stack:

        def connect(url: str) -> Engine:
            engine = open_engine(url)
            stack.callback(engine.dispose)
            return engine

        yield connect


@pytest.fixture
async def share(
    url: str, connect: Callable[[str], Engine], nursery: trio.Nursery
) -> AsyncIterator[Share]:
    """Have daemons share the test's database; they end with the test."""
    migrate(connect(url))
    with ExitStack() as stack:

        async def share(count: int) -> list[Sharer]:
            daemons = [Sharer(connect(url), f"instance-{n}") for n in range(count)]
            for daemon in daemons:
                stack.callback(daemon.close)
                await daemon.begin(nursery)
            for daemon in daemons:
                daemon.said()
            return daemons

        yield share
        nursery.cancel_scope.cancel("the test has ended")
