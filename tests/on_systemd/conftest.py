"""Machines with the Debian package installed; `make test-systemd` runs these tests, and only it.

One machine is for all tests that leave nothing behind in it that `clean` does not take away.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.on_systemd.machine import DEBIAN_12, DEBIAN_13, Machine, boot

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test of this directory its marker."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.systemd)


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of this checkout."""
    built = subprocess.run(
        [ROOT / "packaging" / "deb"], stdout=subprocess.PIPE, text=True, check=True
    )
    return ROOT / built.stdout.splitlines()[-1]


@contextmanager
def _with_package(image: str, package: Path) -> Iterator[Machine]:
    with boot(image) as machine:
        # The daemon is started by each test, with the settings that it wants.
        machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode="755")
        machine.push(package, "/root")
        machine.sh(
            "dpkg --force-unsafe-io -i /root/clarad_*.deb && cp -p /etc/clarad/clarad.env /root/"
        )
        yield machine


@pytest.fixture(scope="session")
def installed(package: Path) -> Iterator[Machine]:
    """A Debian 12 with the package in it."""
    with _with_package(DEBIAN_12, package) as machine:
        yield machine


@pytest.fixture(scope="session")
def newer(package: Path) -> Iterator[Machine]:
    """A Debian 13 with the package in it."""
    with _with_package(DEBIAN_13, package) as machine:
        yield machine


@pytest.fixture(params=["installed", "newer"], ids=["debian-12", "debian-13"])
def either(request: pytest.FixtureRequest) -> Machine:
    """One after the other."""
    machine: Machine = request.getfixturevalue(request.param)
    machine.clean()
    return machine


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """The Debian 12 as the package has left it: the daemon is stopped, and knows nothing."""
    installed.clean()
    return installed
