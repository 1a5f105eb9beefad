"""Machines with the Debian package installed; `make test-systemd` runs these tests, and only it.

One machine is for all tests that leave nothing behind in it that `clean` does not take away.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.on_systemd.machine import DEBIAN_12, DEBIAN_13, Machine, boot

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LOCK: Final = ROOT / "packaging" / "requirements.lock"
TOOLS: Final = ("hatchling", "pip", "setuptools", "wheel")
"""What builds clarad, and what pipx puts into each of its environments."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test of this directory its marker."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.systemd)


@pytest.fixture(scope="session")
def wheelhouse() -> Path:
    """All wheels that an installation needs; they are kept in build/ for as long as they fit."""
    key = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    place = ROOT / "build" / f"wheels-{key}" / "wheelhouse"
    if not place.exists():
        part = place.with_name("part")
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:")
        hashed = ("--no-deps", "--require-hashes", "--requirement", str(LOCK))
        for what in (hashed, TOOLS):
            subprocess.run([*pip, "--dest", str(part), *what], check=True)
        part.rename(place)
    return place


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has who unpacks the source distribution."""
    place = tmp_path_factory.mktemp("source")
    build = (sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory")
    subprocess.run([*build, str(place)], cwd=ROOT, check=True)
    [archive] = place.iterdir()
    unpacked = place / "source"
    unpacked.mkdir()
    unpack = ("tar", "--extract", "--strip-components=1", "--file", str(archive))
    subprocess.run(unpack, cwd=unpacked, check=True)
    return unpacked


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
