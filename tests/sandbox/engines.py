"""The engines that tests run on: those of `make engines`, or whatever the environment names.

Where one does not answer its tests are not generated, unless `CLARAD_REQUIRE_ENGINES=1` says that
both have to be there.
"""

import fcntl
import os
import secrets
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from sandbox import Keeper, Settings, choose_engine, load, make_keeper
from sandbox.docker import LABEL as DOCKER_LABEL
from sandbox.incus import LABEL as INCUS_LABEL

OWN: Final = Path("/run/clarad-engines")
"""What `make engines` has started."""


def environment() -> dict[str, str]:
    """What says where the engines are; that of `make engines` counts where nothing else does."""
    found: dict[str, str] = {}
    with suppress(OSError):
        lines = (OWN / "env").read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines)
    return found | dict(os.environ)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(2)
        return unix.connect_ex(path) == 0


def _answering() -> tuple[str, ...]:
    settings = load(environment())
    docker = (settings.docker_host or "unix:///var/run/docker.sock").removeprefix("unix://")
    paths = {"docker": docker, "incus": str(settings.incus_socket)}
    found = tuple(name for name, path in paths.items() if _answers(path))
    if os.environ.get("CLARAD_REQUIRE_ENGINES") == "1" and len(found) < len(paths):
        missing = ", ".join(sorted(paths.keys() - found))
        raise RuntimeError(f"CLARAD_REQUIRE_ENGINES=1 is set, and there is no {missing}")
    return found


ANSWERING: Final = _answering()
"""What the tests with an engine are generated for."""


def _use() -> None:
    """Keep `make engines-stop` of any checkout from ending the engines while this process runs."""
    with suppress(FileNotFoundError):
        fcntl.flock(os.open(OWN / "users", os.O_RDONLY), fcntl.LOCK_SH)


if ANSWERING:
    _use()


def only(*names: str) -> list[Any]:
    """Return those of the engines that answer, as parameters for a test."""
    marks = pytest.mark.engine
    return [pytest.param(name, marks=marks) for name in ANSWERING if name in names]


def settings(mode: str, **variables: str) -> Settings:
    """Read settings for an engine, with no warm sandboxes unless they are asked for."""
    return load({**environment(), "SANDBOX_POOL": "0", "SANDBOX_MODE": mode, **variables})


def variables(mode: str, **more: str) -> dict[str, str]:
    """Return the settings of a process that makes its sandboxes on an engine."""
    found = environment().items()
    ours = {name: value for name, value in found if name.startswith(("DOCKER_", "INCUS_"))}
    return {**ours, "SANDBOX_POOL": "0", "SANDBOX_MODE": mode, **more}


def keeper_name() -> str:
    """Return a label that nobody else has."""
    return f"test-{secrets.token_hex(4)}"


async def keeper(mode: str, name: str | None = None, **variables: Any) -> Keeper:
    """Return a keeper that is not running yet."""
    return await make_keeper(settings(mode, **variables), name or keeper_name())


def make_leftover(mode: str, label: str | None, name: str) -> None:
    """Make an instance that was never started, as a kill in the middle of a start leaves it."""
    place = settings(mode)
    if mode == "docker":
        labels = [] if label is None else ["--label", f"{DOCKER_LABEL}={label}"]
        command = ["docker", "create", "--name", name, *labels, place.docker.image]
    else:
        labels = [] if label is None else ["--config", f"{INCUS_LABEL}={label}"]
        command = ["incus", "init", place.incus.image, name, "--ephemeral", *labels]
    subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, check=True, capture_output=True
    )


async def remove(mode: str, name: str) -> None:
    """Remove a sandbox behind its keeper's back."""
    engine = await choose_engine(settings(mode), "someone-else")
    await engine.destroy(name)
    engine.close()
