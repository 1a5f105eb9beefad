"""What it costs that several daemons share a PostgreSQL database, and a channel in it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import psycopg
from sqlalchemy import make_url

from bench import load
from bench.load import Result
from bench.report import Figure, number, show
from bench.server import Server, clarad_on, empty_state
from tests.postgres import BINARIES, Cluster

_DAEMONS: Final = (1, 2, 4)
_IN_FLIGHT: Final = 16
"""Messages, with all daemons together: fewer than a channel may have waiting."""
_TURNS: Final = 1_000
_LIMIT_SECONDS: Final = 600.0
_LEAST: Final = 2.0
"""How much slower a channel may be for being used from several daemons."""
_HEAD: Final = ["", "turns/s", "p50 ms", "p99 ms", "CPU us/turn", "statements/turn"]
_STATEMENTS: Final = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"


class _Measured(NamedTuple):
    result: Result
    statements: float


def run() -> list[Figure]:
    """Measure one channel that all daemons use, and one for each message, and print both."""
    if BINARIES is None:
        print("\nNo PostgreSQL is installed: nothing is shared.")
        return []
    figures: list[Figure] = []
    for title, channel in (("one channel", "shared"), ("a channel for each", None)):
        measured = {count: _measure(count, channel) for count in _DAEMONS}
        rows = [_row(f"{count} daemons", found) for count, found in measured.items()]
        show(f"{_IN_FLIGHT} messages in flight, {title}", _HEAD, rows)
        if channel is not None:
            alone, *others = (found.result.turns_per_second for found in measured.values())
            figures += [
                Figure(f"a channel with 1 daemon/with {count}", alone / many, "x", _LEAST)
                for count, many in zip(_DAEMONS[1:], others, strict=True)
            ]
    return figures


def _measure(count: int, channel: str | None) -> _Measured:
    with _daemons(count) as (servers, database):
        before = database.execute(_STATEMENTS).fetchone()
        result = load.run(
            *servers,
            connections=1,
            in_flight=_IN_FLIGHT // count,
            turns=_TURNS,
            limit=_LIMIT_SECONDS,
            channel=channel,
        )
        after = database.execute(_STATEMENTS).fetchone()
        assert before is not None
        assert after is not None
        warmed_up = 1 + load.WARM_UP_SHARE
        return _Measured(result, float(after[0] - before[0]) / (_TURNS * warmed_up))


@contextmanager
def _daemons(count: int) -> Iterator[tuple[list[Server], psycopg.Connection]]:
    """Run daemons on a database of their own, and connect to it."""
    assert BINARIES is not None
    cluster = Cluster(BINARIES, shared_preload_libraries="pg_stat_statements")
    cluster.start()
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        url = stack.enter_context(cluster.database())
        plain = make_url(url).set(drivername="postgresql").render_as_string()
        database = stack.enter_context(psycopg.connect(plain, autocommit=True))
        database.execute("CREATE SCHEMA measuring")
        database.execute("CREATE EXTENSION pg_stat_statements SCHEMA measuring")
        database.execute("SET search_path = measuring")
        states = [stack.enter_context(empty_state()) for _ in range(count)]
        servers = [
            stack.enter_context(clarad_on(state, "echo", DATABASE_URL=url)) for state in states
        ]
        yield servers, database


def _row(name: str, measured: _Measured) -> list[str]:
    result = measured.result
    figures = result.turns_per_second, result.p50_ms, result.p99_ms, result.cpu_us_per_turn
    return [name, *map(number, (*figures, measured.statements))]
