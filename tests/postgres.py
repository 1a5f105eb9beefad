"""The databases that tests run on: SQLite, and a PostgreSQL cluster of the tests' own.

The cluster lies in a temporary directory, listens on a socket in it only, is started when the first
test asks for it and stopped when the session ends. Where no PostgreSQL is installed its tests are
not generated, unless `CLARAD_REQUIRE_POSTGRES=1` says that it has to be there.
"""

import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, create_engine, text

SERVER_TIMEZONE: Final = "Asia/Kathmandu"
"""Not UTC, and not a whole number of hours off: what assumes either is found out."""


def find_binaries() -> Path | None:
    """Return the directory with `initdb` and `pg_ctl`, the newest one if there are several."""
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if installed:
        return max(installed, key=lambda path: float(path.parent.name))
    in_path = shutil.which("initdb")
    # Debian's PATH has wrappers only; other systems have the real ones, beside each other.
    return Path(in_path).resolve().parent if in_path else None


BINARIES: Final = find_binaries()
if BINARIES is None and os.environ.get("CLARAD_REQUIRE_POSTGRES") == "1":
    raise RuntimeError("CLARAD_REQUIRE_POSTGRES=1 is set, and no PostgreSQL is installed")

_POSTGRESQL: Final = pytest.param("postgresql", marks=pytest.mark.postgres)
SHARED: Final = () if BINARIES is None else (_POSTGRESQL,)
"""Those that several daemons can share, as parameters of tests."""

BACKENDS: Final = ("sqlite", *SHARED)
"""What the tests of the store are generated for."""


class Cluster:
    """A PostgreSQL server with its data; `postgres` is its superuser, without a password."""

    def __init__(self, binaries: Path, **settings: str) -> None:
        """`settings` are PostgreSQL's, beside those that all clusters have."""
        self._binaries = binaries
        self._settings = settings
        self._names = (f"test_{n}" for n in itertools.count(1))
        self._free: list[str] = []
        # Short, and not pytest's: a socket's path must fit into 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="clarad-pg-"))
        self._data = self.directory / "data"
        if self._owner is not None:
            shutil.chown(self.directory, self._owner)

    @property
    def _owner(self) -> str | None:
        # PostgreSQL refuses to run as root.
        return "postgres" if os.geteuid() == 0 else None

    def start(self) -> None:
        """Make the cluster and wait until it takes connections."""
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        self.go_on()

    def go_on(self) -> None:
        """Start the server, and wait until it takes connections."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "timezone": SERVER_TIMEZONE,
            # Nobody misses this cluster after a power cut.
            "fsync": "off",
            "full_page_writes": "off",
        } | self._settings
        options = shlex.join(f"-c{name}={value}" for name, value in settings.items())
        log = self.directory / "log"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def halt(self) -> None:
        """Stop the server at once, whoever is connected; nothing that was committed is lost."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def stop(self) -> None:
        """Stop the server, if it runs, whoever is connected, and delete everything."""
        if (self._data / "postmaster.pid").exists():
            self.halt()
        shutil.rmtree(self.directory)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give out the URL of an empty database that nobody else uses meanwhile."""
        # Emptying one takes a tenth of the time that making one takes.
        name = self._free.pop() if self._free else self._make_database()
        yield f"postgresql+psycopg://postgres@/{name}?host={self.directory}"
        with self._connect(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        self._free.append(name)

    def _make_database(self) -> str:
        name = next(self._names)
        with self._connect("postgres") as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.directory), user="postgres", dbname=name, autocommit=True
        )

    def _run(self, program: str, *arguments: str | Path) -> None:
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [self._binaries / program, *arguments],
                cwd=self.directory,
                user=self._owner,
                group=self._owner,
                extra_groups=None if self._owner is None else [],
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the tests
            )
            try:
                process.wait()
            except BaseException:
                # Half a start cannot be undone: its processes may not have written yet which they
                # are. All of these programs end by themselves, within seconds.
                process.wait()
                raise
            if process.returncode:
                output.seek(0)
                log = self.directory / "log"
                said = output.read() + (log.read_text() if log.exists() else "")
                raise RuntimeError(f"{program} failed with {process.returncode}:\n{said}")


def lock_table(url: str, table: str, seconds: float) -> None:
    """Lock a table for so long, as somebody's forgotten shell would; nobody can even read it."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE {table}"))
        time.sleep(seconds)


_CLUSTER: Final = pytest.StashKey[Cluster]()


def cluster(config: pytest.Config) -> Cluster:
    """Return the session's cluster; the first caller waits for its start."""
    if _CLUSTER not in config.stash:
        assert BINARIES is not None
        started = config.stash[_CLUSTER] = Cluster(BINARIES)
        try:
            started.start()
        except BaseException:
            started.stop()
            del config.stash[_CLUSTER]
            raise
        config.add_cleanup(started.stop)
    return config.stash[_CLUSTER]


@contextmanager
def database(backend: str, directory: Path, config: pytest.Config) -> Iterator[str]:
    """Give out the URL of an empty database that nobody else uses meanwhile."""
    if backend == "sqlite":
        yield f"sqlite:///{directory}/test.db"
    else:
        with cluster(config).database() as url:
            yield url
