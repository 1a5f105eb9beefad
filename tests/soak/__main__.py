"""`python -m tests.soak [--minutes N] [--seed S] [--database postgresql]`: see CONTRIBUTING.md."""

import argparse
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests import postgres
from tests.soak.faults import UnknownFault
from tests.soak.sandboxes import find_mode
from tests.soak.soak import Plan, soak

INTERRUPTED: Final = 128 + signal.SIGINT


def main() -> int:
    """Soak a daemon, and return 1 if a promise was broken."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `make soak &` has it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", default=None, help="repeats the moments of an earlier one")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--fault", action="append", default=[], help="only this; may be repeated")
    arguments = parser.parse_args()
    if arguments.database == "postgresql" and postgres.BINARIES is None:
        parser.error("no PostgreSQL is installed")
    logging.getLogger("clarad").addHandler(logging.NullHandler())  # lost connections are no news
    plan = Plan(
        seconds=60 * arguments.minutes,
        seed=arguments.seed or secrets.token_hex(4),
        kinds=tuple(arguments.fault),
        sandboxes=find_mode(),
    )
    directory = Path(tempfile.mkdtemp(prefix="clarad-soak-"))
    print(f"seed {plan.seed}, in {directory}", flush=True)
    is_kept = True
    try:
        with _cluster(arguments.database) as cluster:
            report = soak(plan, directory, cluster)
        report.show()
        is_kept = bool(report.broken)
        if is_kept:
            logs = ", ".join(map(str, report.log_paths))
            print(f"\nThe log is in {logs}; what else there is lies beside it.")
        return is_kept
    except UnknownFault as error:
        is_kept = False
        parser.error(str(error))
    except KeyboardInterrupt:
        is_kept = False
        print("\ninterrupted: nothing is left, and nothing is said of promises", file=sys.stderr)
        return INTERRUPTED
    finally:
        if not is_kept:
            shutil.rmtree(directory)


@contextmanager
def _cluster(database: str) -> Iterator[postgres.Cluster | None]:
    """A PostgreSQL cluster that nobody else feels stopping, if that is the database."""
    if database == "sqlite":
        yield None
        return
    assert postgres.BINARIES is not None
    cluster = postgres.Cluster(postgres.BINARIES)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
