"""`pipx install .` and `sudo clarad setup-systemd`, on a machine of their own without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.on_systemd.machine import DEBIAN_12, Machine, boot

PIPX: Final = (
    "PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheelhouse "
    "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install /root/source"
)


@pytest.fixture(scope="module")
def with_pipx(wheelhouse: Path, source: Path) -> Iterator[Machine]:
    """A machine onto which pipx has installed clarad."""
    with boot(DEBIAN_12) as machine:
        machine.push(wheelhouse, "/root")
        machine.push(source, "/root")
        machine.sh(PIPX)
        yield machine


@pytest.fixture
def machine(with_pipx: Machine) -> Machine:
    """That machine without the units."""
    with_pipx.run("clarad", "setup-systemd", "--remove", "--yes")
    with_pipx.sh("rm -rf /etc/clarad /var/lib/clarad")
    return with_pipx


def test_it_installs_the_units_and_starts_the_daemon(machine: Machine) -> None:
    machine.sh("clarad setup-systemd --yes")
    assert machine.sh("systemctl is-enabled clarad.service") == "enabled"
    assert machine.sh("clarad send hello") == "hello"
    assert machine.run("systemd-analyze", "verify", "clarad.service", "clarad.socket").err == ""


def test_it_shows_what_it_is_going_to_do_and_does_it_only_if_that_is_wanted(
    machine: Machine,
) -> None:
    said = machine.run("clarad", "setup-systemd", stdin="n\n")
    assert said.status == 1
    assert "+ExecStart=/opt/pipx/venvs/clarad/bin/clarad run" in said.out
    assert "    systemctl enable --now clarad.service\n" in said.out
    assert said.err == "clarad: nothing has changed\n"
    assert machine.run("systemctl", "cat", "clarad.service").status == 1


def test_it_can_be_agreed_to(machine: Machine) -> None:
    assert machine.run("clarad", "setup-systemd", stdin="y\n").status == 0
    assert machine.show("ActiveState") == "active"


def test_a_second_time_it_has_nothing_to_do(machine: Machine) -> None:
    machine.sh("clarad setup-systemd --yes")
    assert machine.sh("clarad setup-systemd") == "Everything is installed already."


def test_after_an_upgrade_it_shows_the_difference_and_restarts_the_daemon(
    machine: Machine,
) -> None:
    machine.sh("clarad setup-systemd --yes")
    before = machine.show("MainPID")
    machine.sh("sed -i s/^TasksMax=.*/TasksMax=7/ /usr/local/lib/systemd/system/clarad.service")
    assert "-TasksMax=7\n+TasksMax=" in machine.sh("clarad setup-systemd --yes")
    assert machine.show("MainPID") != before


def test_settings_that_are_there_are_left_as_they_are(machine: Machine) -> None:
    machine.write("/etc/clarad/clarad.env", "CLARA_GATEWAY_PORT=12345\n")
    machine.sh("clarad setup-systemd --yes")
    assert machine.sh("cat /etc/clarad/clarad.env") == "CLARA_GATEWAY_PORT=12345"


def test_it_is_undone_and_settings_and_data_stay(machine: Machine) -> None:
    machine.sh("clarad setup-systemd --yes && clarad setup-systemd --remove --yes")
    assert machine.run("systemctl", "cat", "clarad.service").status == 1
    assert machine.run("pgrep", "-u", "clarad").out == ""
    assert machine.sh("find /usr/local/lib /usr/local/share -name '*clarad*' -type f") == ""
    assert machine.sh("ls /etc/clarad/clarad.env /var/lib/clarad/clarad.db")


def test_an_installation_in_a_home_is_refused_with_the_mend(machine: Machine) -> None:
    machine.sh("cp -a /opt/pipx/venvs/clarad /root/venv")
    said = machine.run("/root/venv/bin/python", "-m", "clarad", "setup-systemd", "--yes")
    assert said.status == 1
    assert said.err.startswith("clarad: the daemon may not look into homes, and /root/venv/bin/")
    assert "PIPX_HOME=/opt/pipx" in said.err
