"""`python -m tests.soak [--minutes N] [--seed S] [--database postgresql]`: see CONTRIBUTING.md."""

import argparse
import logging
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from tests import postgres
from tests.soak.soak import Plan, soak


def main() -> int:
    """Soak a daemon, and return 1 if a promise was broken."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", default=None, help="repeats the moments of an earlier one")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--fault", action="append", default=[], help="only this; may be repeated")
    arguments = parser.parse_args()
    logging.getLogger("clarad").addHandler(logging.NullHandler())  # lost connections are no news
    seed = arguments.seed or secrets.token_hex(4)
    directory = Path(tempfile.mkdtemp(prefix="clarad-soak-"))
    print(f"seed {seed}, in {directory}", flush=True)
    plan = Plan(seconds=60 * arguments.minutes, seed=seed, kinds=tuple(arguments.fault))
    cluster = None
    if arguments.database == "postgresql":
        if postgres.BINARIES is None:
            parser.error("no PostgreSQL is installed")
        cluster = postgres.Cluster(postgres.BINARIES)
        cluster.start()
    try:
        report = soak(plan, directory, cluster)
    finally:
        if cluster is not None:
            cluster.stop()
    report.show()
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())
