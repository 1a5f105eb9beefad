"""The whole: nodes with users, daemons, and what goes wrong; then the promises are looked at."""

import itertools
import math
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from typing import Final

import trio
from sqlalchemy import Engine, text

from clarad.adapters import adapter
from clarad.store import open_engine
from tests.postgres import Cluster
from tests.receiver import Receiver, answers, receiver
from tests.soak.automation import NO_TASKS, moments, tasks
from tests.soak.faults import Faults, Happened
from tests.soak.installation import Installation
from tests.soak.ledger import Ledger
from tests.soak.line import Line
from tests.soak.measure import Meter
from tests.soak.nodes import Plain, Resuming
from tests.soak.promises import Acts, broken, broken_so_far, gaps
from tests.soak.report import Report
from tests.soak.under_asyncio import UnderAsyncio
from tests.soak.users import Users

SETTLING = 120.0
"""Seconds after the last fault until every message has to have its answer."""

NO_TOOLS: Final = "no tools, as no engine of sandboxes is ready (make engines)"


@dataclass(frozen=True)
class Plan:
    """How long, and how hard; times in seconds."""

    seconds: float
    seed: str
    resuming: int = 3
    plain: int = 2
    under_asyncio: int = 2
    between_faults: float = 1.5
    """At the most."""
    between_bursts: float = 1.5
    """Of each channel, at the most; one in twenty is longer."""
    faults: int | None = None
    """How many; then it ends, however long it takes."""
    kinds: tuple[str, ...] = ()
    """The faults, as `Faults` calls them; all, if there are none here."""
    sandboxes: str | None = None
    """The engine that the tools have; without one there are no tools."""

    @property
    def nodes(self) -> Sequence[type[Resuming | Plain | UnderAsyncio]]:
        """Their kinds."""
        return (
            [Resuming] * self.resuming + [Plain] * self.plain + [UnderAsyncio] * self.under_asyncio
        )


def soak(plan: Plan, directory: Path, cluster: Cluster | None = None) -> Report:
    """Run it, with PostgreSQL if there is a cluster; its files stay in the directory."""
    with _database(cluster) as url, _eager_adapters():
        names = ["daemon-1"] if cluster is None else ["daemon-1", "daemon-2"]
        with ExitStack() as stack:
            free = [stack.enter_context(create_server(("127.0.0.1", 0))) for _ in names]
            ports = [one.getsockname()[1] for one in free]
        installations = [
            Installation(
                directory, name, port, random.Random(f"{plan.seed}-{name}"), plan.sandboxes, url
            )
            for name, port in zip(names, ports, strict=True)
        ]
        first = installations[0]
        try:
            run = Soak(plan, installations, cluster)
            _run(run)
            refused = set[str]().union(*(one.refused() for one in installations))
            for name in refused & run.ledger.asked.keys():
                run.ledger.asked[name].refusals = max(run.ledger.asked[name].refusals, 1)
            with _engine(first) as engine:
                kept = Acts(first.acts)
                problems = [*run.broken, *broken(engine, run.ledger, kept, run.once)]
                ran = run.ran(engine)
        finally:
            for one in installations:
                one.clean_up()
    database = "SQLite" if cluster is None else f"{len(names)} daemons on PostgreSQL"
    tools = f"tools in sandboxes of {plan.sandboxes}" if plan.sandboxes else NO_TOOLS
    return Report(
        title=f"Soaked with {database} and {tools}; seed {plan.seed}",
        log_paths=[one.log_path for one in installations],
        ledger=run.ledger,
        meter=run.meter,
        happened=run.happened,
        ran=ran,
        broken=problems,
    )


@contextmanager
def _engine(installation: Installation) -> Iterator[Engine]:
    engine = open_engine(installation.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _eager_adapters() -> Iterator[None]:
    """Have adapters connect again soon.

    Their pause grows to half a minute. The daemon is gone every few seconds here, and back for few:
    an adapter that looks that seldom can miss it for minutes, and its users' time would be the
    time of those pauses.
    """
    patient = adapter.FIRST_PAUSE, adapter.LONGEST_PAUSE
    adapter.FIRST_PAUSE, adapter.LONGEST_PAUSE = 0.05, 0.5  # type: ignore[misc]
    try:
        yield
    finally:
        adapter.FIRST_PAUSE, adapter.LONGEST_PAUSE = patient  # type: ignore[misc]


def _run(run: "Soak") -> None:
    try:
        trio.run(run.run)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None  # nurseries have wrapped it


@contextmanager
def _database(cluster: Cluster | None) -> Iterator[str | None]:
    if cluster is None:
        yield None
    else:
        with cluster.database() as url:
            yield url


class Soak:
    """What is under way in it, and what there is to say after it."""

    def __init__(
        self, plan: Plan, installations: Sequence[Installation], cluster: Cluster | None
    ) -> None:
        self._plan = plan
        self._installations = installations
        ports = [installation.port for installation in installations]
        self._lines = [
            Line(ports, random.Random(f"{plan.seed}-line-{n}")) for n in range(len(plan.nodes))
        ]
        self.ledger = Ledger()
        self._told_otherwise: list[str] = []
        self._looks = 0
        self._seen: set[str] = set()
        self.meter = Meter(max(1.0, plan.seconds / 15))
        self.once = moments(datetime.now(UTC), plan.seconds)
        self._faults = Faults(
            installations,
            self._lines,
            cluster,
            random.Random(plan.seed),
            self._look,
            kinds=plan.kinds,
            seconds=plan.seconds,
        )

    @property
    def happened(self) -> Sequence[Happened]:
        """What went wrong."""
        return self._faults.happened

    @property
    def broken(self) -> list[str]:
        """The promises that are known to be broken, besides those that the nodes have noticed."""
        of_daemons = [problem for one in self._installations for problem in one.broken]
        return of_daemons + self._told_otherwise

    def ran(self, engine: Engine) -> dict[str, int]:
        """Return what there was besides messages, and how often."""
        with engine.connect() as connection:

            def count(table: str, where: str = "1 = 1") -> int:
                query = f"SELECT count(*) FROM {table} WHERE {where}"
                return int(connection.execute(text(query)).scalar_one())

            return {
                "runs of hooks": count("clarad_hook_runs"),
                "  of sessions that timed out": count("clarad_hook_runs", "hook = 'gone-quiet'"),
                "  of tools": count("clarad_hook_runs", "hook = 'used'"),
                "occurrences of tasks": count("clarad_task_runs"),
                "looks at the promises after a restart": self._looks,
                "lives of daemons": sum(one.lives for one in self._installations),
                "  with tools in sandboxes": sum(
                    one.lives_with_tools for one in self._installations
                ),
            }

    async def run(self) -> None:
        """Soak, and let all come to its end."""
        async with receiver(answers(200)) as webhooks:
            for installation in self._installations:
                installation.define(webhooks.url, tasks(self.once))
                await installation.start()
            await self._live()
            await self._settle()
        _note(webhooks, self._installations[0].acts)

    async def _live(self) -> None:
        plan = self._plan
        users = [
            Users(f"node{n}", self.ledger, random.Random(f"{plan.seed}-{n}"), plan.between_bursts)
            for n in range(len(self._lines))
        ]
        async with trio.open_nursery() as nursery:
            for line in self._lines:
                await nursery.start(line.serve)
            nursery.start_soon(self.meter.run, self._installations, self.ledger)
            nursery.start_soon(self._say_how_it_goes)
            async with trio.open_nursery() as nodes:
                for kind, user, line in zip(plan.nodes, users, self._lines, strict=True):
                    nodes.start_soon(kind(user, line).run)
                with trio.move_on_after(plan.seconds if plan.faults is None else math.inf):
                    await self._faults.inject(plan.between_faults, plan.faults)
                for user in users:
                    user.enough.set()
                nodes.cancel_scope.deadline = trio.current_time() + SETTLING
            nursery.cancel_scope.cancel("all have left")

    async def _look(self) -> None:
        """See whether what was told since the last look is what the store says."""
        told = [
            message
            for message in self.ledger.asked.values()
            if message.outcomes and message.id not in self._seen
        ]
        self._seen |= {message.id for message in told}
        self._looks += 1
        with _engine(self._installations[0]) as engine:
            self._told_otherwise += await trio.to_thread.run_sync(broken_so_far, engine, told)

    async def _say_how_it_goes(self) -> None:
        minutes = self._plan.seconds / 60
        for minute in itertools.count(1):
            await trio.sleep(60)
            ended = sum(message.ended_at is not None for message in self.ledger.asked.values())
            known = len(self.broken) + len(self.ledger.broken)
            print(
                f"{minute} of {minutes:g} minutes: {len(self.happened)} faults, {ended} answers, "
                f"{known} promises known to be broken",
                file=sys.stderr,
                flush=True,
            )

    async def _settle(self) -> None:
        """Have each occurrence written down, live on without tasks until no run waits, and stop.

        Rows need not be written in order: were the tasks removed first, nobody would ask for those
        that a kill has left out.
        """
        with _engine(self._installations[0]) as engine:
            with trio.move_on_after(SETTLING):
                while gaps(engine, self.once):
                    await trio.sleep(0.1)
            # All of them first: who starts while others have forgotten a task takes it for new.
            for installation in self._installations:
                await installation.end(signal.SIGTERM)
            for installation in self._installations:
                installation.write_tasks(NO_TASKS)
                await installation.start()
            with trio.move_on_after(SETTLING):
                while _unfinished(engine):
                    await trio.sleep(0.1)
        for installation in self._installations:
            await installation.stop_for_good()


def _note(webhooks: Receiver, acts: Path) -> None:
    """Write what was posted down as what commands do."""
    for request in webhooks.requests:
        with (acts / f"hook-{request.headers['webhook-id']}").open("a") as file:
            file.write("x")


def _unfinished(engine: Engine) -> int:
    query = " UNION ALL ".join(
        f"SELECT id FROM {table} WHERE ended_at IS NULL"
        for table in ("clarad_task_runs", "clarad_hook_runs")
    )
    with engine.connect() as connection:
        return len(connection.execute(text(query)).all())
