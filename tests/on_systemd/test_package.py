"""The Debian package on machines of its own: installed, upgraded, removed and purged, offline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.on_systemd.machine import DEBIAN_12, DEBIAN_13, Machine, boot

# Nobody misses this machine after a power cut.
INSTALL: Final = "dpkg --force-unsafe-io -i /root/clarad_*.deb"


@pytest.fixture(scope="module", params=[DEBIAN_12, DEBIAN_13])
def bare(request: pytest.FixtureRequest, package: Path) -> Iterator[Machine]:
    """A machine without clarad."""
    with boot(request.param) as machine:
        machine.push(package, "/root")
        yield machine


@pytest.fixture
def new(bare: Machine) -> Machine:
    """That machine with the package just installed."""
    bare.sh(f"dpkg --purge clarad; {INSTALL}")
    return bare


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """That machine with the package installed, and the daemon running."""
    bare.sh(f"dpkg -s clarad >/dev/null 2>&1 || {INSTALL}; systemctl enable --now clarad.service")
    return bare


def test_once_installed_it_is_started_and_answers(new: Machine) -> None:
    assert new.sh("systemctl is-enabled clarad.service") == "enabled"
    assert new.sh("clarad send hello") == "hello"


def test_the_socket_waits_to_be_enabled(machine: Machine) -> None:
    assert machine.run("systemctl", "is-enabled", "clarad.socket").out.strip() == "disabled"


def test_everything_is_compiled_so_that_a_start_is_quick(machine: Machine) -> None:
    compiled = "/usr/lib/clarad/clarad/app/__pycache__/daemon.cpython-3*.pyc"
    assert machine.sh(f"ls {compiled} | wc -l") == "1"


def test_an_upgrade_keeps_the_data_and_the_settings_and_restarts_the_daemon(
    machine: Machine,
) -> None:
    machine.configure("CLARA_MESSAGE_TIMEOUT=77")
    machine.sh("clarad send before")
    pid, rows = machine.show("MainPID"), sent(machine)
    machine.sh(f"{INSTALL} </dev/null")
    assert machine.show("ActiveState") == "active"
    assert machine.show("MainPID") != pid
    assert sent(machine) == rows > 0
    assert machine.sh("grep -c =77 /etc/clarad/clarad.env") == "1"


def test_an_upgrade_leaves_a_daemon_stopped_that_was_switched_off(machine: Machine) -> None:
    machine.sh(f"systemctl disable --now clarad.service && {INSTALL}")
    assert machine.run("systemctl", "is-enabled", "clarad.service").out.strip() == "disabled"
    assert machine.show("ActiveState") == "inactive"


def test_what_was_removed_is_installed_again_with_its_data(machine: Machine) -> None:
    machine.sh("clarad send before")
    rows = sent(machine)
    machine.sh("dpkg --remove clarad")
    assert machine.run("pgrep", "-u", "clarad").out == ""
    machine.sh(INSTALL)
    assert sent(machine) == rows > 0
    assert machine.sh("clarad send hello") == "hello"


def test_a_machine_that_starts_nothing_while_it_is_built_is_obeyed(bare: Machine) -> None:
    bare.sh("dpkg --purge clarad")
    bare.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode="755")
    bare.sh(INSTALL)
    state = bare.show("ActiveState")
    bare.sh("rm /usr/sbin/policy-rc.d")
    assert state == "inactive"


def test_a_purge_leaves_the_user_and_nothing_else(machine: Machine) -> None:
    machine.sh("clarad send hello && dpkg --purge clarad")
    assert machine.sh("find / -xdev -name '*clara*' -not -path '/root/*'") == ""
    assert machine.sh("getent passwd clarad").startswith("clarad:")


def sent(machine: Machine) -> int:
    """How many messages there are in the database."""
    count = "SELECT count(*) FROM clarad_messages"
    path = "/var/lib/clarad/clarad.db"
    script = f"import sqlite3; print(sqlite3.connect('{path}').execute('{count}').fetchone()[0])"
    return int(machine.sh(f'runuser -u clarad -- python3 -c "{script}"'))
