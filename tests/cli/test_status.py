"""`clarad status`: a health check that only a daemon that works can pass."""

import signal
from pathlib import Path

from clarad.version import VERSION
from tests.installation import Installation


def test_a_running_daemon_says_so(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    with here.daemon() as process:
        said = here.clarad("status")
    assert (said.status, said.err) == (0, "")
    runs, serves, database = said.out.splitlines()
    assert runs == f"clarad {VERSION} runs, as process {process.pid}"
    assert serves == "0 adapters, 0 sessions, 0 messages running, 0 queued"
    assert database.startswith("database: 0.")


def test_it_fails_where_no_daemon_runs(tmp_path: Path) -> None:
    said = Installation(tmp_path).clarad("status")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("clarad: ")


def test_it_fails_once_the_daemon_was_killed(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    with here.daemon() as process:
        process.signal(signal.SIGKILL)
        process.wait()
        assert here.clarad("status").status == 1
