"""The settings of the sandboxes: read once, from the environment, and refused as a whole if wrong.

Names and defaults are those of an older Clara where it had them.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox.variables import Variables

MODES: Final = ("off", "auto", "docker", "incus", "incus-vm")
NETWORKS: Final = ("none", "internet")
TYPES: Final = ("container", "vm")

PREFIXES: Final = ("SANDBOX_", "DOCKER_SANDBOX_", "INCUS_SANDBOX_")
"""How the names begin that nobody but these settings has."""

MIB: Final = 1 << 20
MIN_MEMORY: Final = 64 * MIB
"""Below that the agent and one Python do not fit."""

_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?b)?", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class EngineSettings:
    """What each engine has of its own. Memory is in bytes, the timeout in seconds, CPUs in CPUs."""

    image: str
    timeout: float = 900
    memory: int = 512 * MIB
    cpu: float = 1


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. `disk` is in bytes; None is the engine's default."""

    mode: str = "off"
    docker: EngineSettings = EngineSettings("python:3.12-slim")
    incus: EngineSettings = EngineSettings("images:debian/12/cloud")
    docker_host: str | None = None
    docker_runtime: str | None = None
    incus_type: str = "container"
    incus_remote: str = "local"
    incus_socket: Path = Path("/var/lib/incus/unix.socket")
    incus_config: Path = Path("~/.config/incus")
    pids: int = 256
    disk: int | None = None
    network: str = "none"
    pool: int = 1
    max: int = 16


class SettingsError(Exception):
    """The settings cannot be used; `problems` has one sentence for each thing that is wrong."""

    def __init__(self, settings: Settings, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.settings = settings
        self.problems = problems


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from `environ`.

    Raises:
        SettingsError: naming every variable that is wrong and what to write instead.
    """
    variables = Variables(environ)
    settings = _read(variables)
    if settings.mode == "incus-vm" and environ.get("INCUS_SANDBOX_TYPE") == "container":
        variables.problems.append(
            "SANDBOX_MODE=incus-vm and INCUS_SANDBOX_TYPE=container contradict each other: "
            "drop one of them"
        )
    if settings.pool > settings.max:
        variables.problems.append(
            f"SANDBOX_POOL={settings.pool} is more than SANDBOX_MAX={settings.max}: "
            "the warm ones count among all; raise SANDBOX_MAX or lower SANDBOX_POOL"
        )
    if variables.problems:
        raise SettingsError(settings, variables.problems)
    return settings


def unknown(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable that is named as a setting, and is none."""
    _read(variables := Variables(environ))
    return [
        f"{name} is not a setting"
        + (f"; did you mean {similar}?" if similar else ", and has no effect")
        for name, similar in variables.unknown(*PREFIXES)
    ]


def _read(variables: Variables) -> Settings:
    read, environ = variables.read, variables.environ
    default = Settings()
    return Settings(
        mode=read("SANDBOX_MODE", default.mode, _one_of(MODES)),
        docker=_engine(variables, "DOCKER", default.docker.image),
        incus=_engine(variables, "INCUS", default.incus.image),
        docker_host=read("DOCKER_HOST", None, _docker_host),
        docker_runtime=read("DOCKER_SANDBOX_RUNTIME", None, str),
        incus_type=read("INCUS_SANDBOX_TYPE", default.incus_type, _one_of(TYPES)),
        incus_remote=read("INCUS_REMOTE", default.incus_remote, _remote),
        incus_socket=_incus_socket(environ),
        incus_config=Path(environ.get("INCUS_CONF") or default.incus_config).expanduser(),
        pids=read("SANDBOX_PIDS", default.pids, _number(16)),
        disk=read("SANDBOX_DISK", None, _disk),
        network=read("SANDBOX_NETWORK", default.network, _one_of(NETWORKS)),
        pool=read("SANDBOX_POOL", default.pool, _number(0)),
        max=read("SANDBOX_MAX", default.max, _number(1)),
    )


def _engine(variables: Variables, name: str, image: str) -> EngineSettings:
    """Read what each engine has, under its prefix."""
    read = variables.read
    return EngineSettings(
        image=read(f"{name}_SANDBOX_IMAGE", image, _image),
        timeout=read(f"{name}_SANDBOX_TIMEOUT", EngineSettings.timeout, _seconds),
        memory=read(f"{name}_SANDBOX_MEMORY", EngineSettings.memory, _memory),
        cpu=read(f"{name}_SANDBOX_CPU", EngineSettings.cpu, _cpus),
    )


def _incus_socket(environ: Mapping[str, str]) -> Path:
    """Look where Incus's own client looks."""
    if named := environ.get("INCUS_SOCKET"):
        return Path(named)
    if directory := environ.get("INCUS_DIR"):
        return Path(directory) / "unix.socket"
    run = Path("/run/incus/unix.socket")
    return run if run.exists() else Settings.incus_socket


def size(text: str) -> int:
    """Read a number of bytes: 512MiB and 512m are binary, 512MB is decimal.

    Raises:
        ValueError: saying how to write it.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("write a size, such as 512MiB or 2GiB")
    number, prefix, suffix = match.group(1), match.group(2).lower(), (match.group(3) or "").lower()
    units = _DECIMAL if suffix == "b" and prefix else _UNITS
    return int(float(number) * units[prefix])


def _memory(text: str) -> int:
    value = size(text)
    if value < MIN_MEMORY:
        raise ValueError(f"write at least {MIN_MEMORY // MIB}MiB: a Python has to fit")
    return value


def _disk(text: str) -> int:
    value = size(text)
    if value < 16 * MIB:
        raise ValueError("write at least 16MiB")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ValueError("write a number of seconds above 0, such as 900")
    return value


def _cpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 4096:
        raise ValueError("write a number of CPUs, such as 1 or 0.5")
    return value


def _number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < least:
            raise ValueError(f"write a whole number from {least}")
        return int(text)

    return parse


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"write one of {', '.join(choices)}")
        return text

    return parse


def _image(text: str) -> str:
    if any(character.isspace() for character in text):
        raise ValueError("write the image's name, without spaces")
    return text


def _docker_host(text: str) -> str:
    if not text.startswith(("unix://", "tcp://")):
        raise ValueError("write unix:///path/to/docker.sock or tcp://host:port")
    return text


def _remote(text: str) -> str:
    if text != "local" and not re.fullmatch(r"https://[^/\s]+", text):
        raise ValueError("write local, or https://host:8443")
    return text
