"""A systemd for each test, as far as a process can see one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clarad.systemd.handover import Handover
from clarad.systemd.notify import Notifier
from tests.systemd.manager import Manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path / "notify") as made:
        yield made


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    """The way to that manager."""
    made = Notifier(manager.address)
    yield made
    made.close()


@pytest.fixture
def handed(manager: Manager) -> Handover:
    """What a daemon is started with that the manager wants to hear from."""
    return Handover(notify_socket=manager.address)
