"""A short soak: `make soak` is a long one.

`CLARAD_KILLS=500` makes the one that kills a long one, too; `CLARAD_SEED` repeats the moments of an
earlier one.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import postgres
from tests.postgres import Cluster
from tests.soak.faults import KILL
from tests.soak.sandboxes import find_mode
from tests.soak.soak import Plan, soak

SEED: Final = os.environ.get("CLARAD_SEED")


KILLS: Final = int(os.environ.get("CLARAD_KILLS", "6"))

pytestmark = pytest.mark.soak


def short(seconds: float, *kinds: str, faults: int | None = None) -> Plan:
    seed = SEED or secrets.token_hex(4)
    print(f"CLARAD_SEED={seed}")
    return Plan(
        seconds=seconds,
        seed=seed,
        resuming=1,
        plain=1,
        under_asyncio=1,
        between_faults=0.5,
        between_bursts=0.5,
        faults=faults,
        kinds=kinds,
        sandboxes=find_mode(),
    )


def test_whatever_goes_wrong_no_promise_is_broken(tmp_path: Path) -> None:
    report = soak(short(8), tmp_path)
    report.show()
    assert report.broken == []
    assert report.ledger.asked


def test_a_daemon_that_is_killed_again_and_again_keeps_every_promise(tmp_path: Path) -> None:
    report = soak(short(KILLS, KILL, faults=KILLS), tmp_path)
    assert report.broken == []
    assert report.faults[KILL] == KILLS


def test_a_disk_that_is_full_for_a_while_costs_nothing_that_was_accepted(tmp_path: Path) -> None:
    report = soak(short(3, "disk full"), tmp_path)
    assert report.broken == []
    assert report.faults["disk full"]


def test_a_crowd_of_strangers_costs_nothing_that_was_accepted(tmp_path: Path) -> None:
    report = soak(short(4, "strangers"), tmp_path)
    assert report.broken == []
    assert report.faults["strangers"]


if postgres.BINARIES is not None:

    @pytest.fixture
    def cluster() -> Iterator[Cluster]:
        """A cluster that no other test feels stopping."""
        assert postgres.BINARIES is not None
        own = Cluster(postgres.BINARIES)
        own.start()
        yield own
        own.stop()

    @pytest.mark.postgres
    def test_two_daemons_of_which_one_is_killed_again_and_again_keep_every_promise(
        tmp_path: Path, cluster: Cluster
    ) -> None:
        kills = KILLS // 2
        report = soak(short(kills, KILL, faults=kills), tmp_path, cluster)
        assert report.broken == []
        assert report.faults[KILL] == kills
        assert any("taking over" in path.read_text() for path in report.log_paths)

    @pytest.mark.postgres
    def test_a_postgresql_that_is_stopped_for_a_while_costs_nothing_that_was_accepted(
        tmp_path: Path, cluster: Cluster
    ) -> None:
        report = soak(short(4, "database stopped"), tmp_path, cluster)
        assert report.broken == []
        assert report.faults["database stopped"]

    def test_a_table_that_somebody_locks_for_a_while_costs_nothing_that_was_accepted(
        tmp_path: Path, cluster: Cluster
    ) -> None:
        report = soak(short(4, "table locked"), tmp_path, cluster)
        assert report.broken == []
        assert report.faults["table locked"]
