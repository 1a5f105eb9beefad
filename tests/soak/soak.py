"""The whole: nodes with users, a daemon, and what goes wrong; then the promises are looked at."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server

import trio
from sqlalchemy import Engine, text

from clarad.store import open_engine
from tests.postgres import Cluster
from tests.soak.faults import Faults
from tests.soak.installation import NO_TASKS, Installation
from tests.soak.ledger import Ledger
from tests.soak.line import Line
from tests.soak.measure import Meter
from tests.soak.nodes import Plain, Resuming, Users
from tests.soak.promises import Acts, broken
from tests.soak.report import Report

SETTLING = 60.0
"""Seconds after the last fault until every message has to have its answer."""


@dataclass(frozen=True)
class Plan:
    """How long, and how hard; times in seconds."""

    seconds: float
    seed: str
    resuming: int = 4
    plain: int = 2
    between_faults: float = 2.0
    """At the most."""
    between_bursts: float = 1.5
    """Of each channel, at the most."""
    kinds: tuple[str, ...] = ()
    """The faults, as `Faults` calls them; all, if there are none here."""


def soak(plan: Plan, directory: Path, cluster: Cluster | None = None) -> Report:
    """Run it, with PostgreSQL if there is a cluster; its files stay in the directory."""
    with _database(cluster) as settings:
        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        installation = Installation(directory, port, **settings)
        ledger = Ledger()
        meter = Meter(max(1.0, plan.seconds / 15))
        try:
            trio.run(_soak, plan, installation, cluster, ledger, meter)
            engine = open_engine(installation.database_url)
            problems = [*installation.broken, *broken(engine, ledger, Acts(installation.acts))]
            engine.dispose()
        finally:
            installation.clean_up()
    return Report(plan.seed, installation.log_path, ledger, meter, problems)


@contextmanager
def _database(cluster: Cluster | None) -> Iterator[dict[str, str]]:
    if cluster is None:
        yield {}
    else:
        with cluster.database() as url:
            yield {"DATABASE_URL": url}


async def _soak(
    plan: Plan,
    installation: Installation,
    cluster: Cluster | None,
    ledger: Ledger,
    meter: Meter,
) -> None:
    chance = random.Random(plan.seed)
    lines = [Line(installation.port) for _ in range(plan.resuming + plan.plain)]
    users = [
        Users(f"node{n}", ledger, random.Random(f"{plan.seed}-{n}"), plan.between_bursts)
        for n in range(len(lines))
    ]
    faults = Faults(installation, lines, cluster, chance, plan.kinds)
    await installation.start()
    async with trio.open_nursery() as nursery:
        for line in lines:
            await nursery.start(line.serve)
        nursery.start_soon(meter.run, installation, ledger)
        async with trio.open_nursery() as nodes:
            for n, (user, line) in enumerate(zip(users, lines, strict=True)):
                kind = Resuming if n < plan.resuming else Plain
                nodes.start_soon(kind(user, line).run)
            with trio.move_on_after(plan.seconds):
                await faults.inject(plan.between_faults)
            for user in users:
                user.enough.set()
            nodes.cancel_scope.deadline = trio.current_time() + SETTLING
        nursery.cancel_scope.cancel("all have left")
    ledger.faults += faults.injected
    await _settle(installation)


async def _settle(installation: Installation) -> None:
    """Live on without tasks until no run waits, and stop."""
    await installation.end(signal.SIGTERM)
    installation.write_tasks(NO_TASKS)
    await installation.start()
    engine = open_engine(installation.database_url)
    with trio.move_on_after(SETTLING):
        while _unfinished(engine):
            await trio.sleep(0.1)
    engine.dispose()
    await installation.stop_for_good()


def _unfinished(engine: Engine) -> int:
    query = " UNION ALL ".join(
        f"SELECT id FROM {table} WHERE ended_at IS NULL"
        for table in ("clarad_task_runs", "clarad_hook_runs")
    )
    with engine.connect() as connection:
        return len(connection.execute(text(query)).all())
