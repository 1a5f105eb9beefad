"""The settings of the daemon, read from the environment: all are refused if one is wrong."""

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from clarad.config import envfile, parsers
from clarad.config.proxies import NO_PROXIES, Proxies
from clarad.config.proxies import parse as parse_proxies
from clarad.limits.rate import Rate
from sandbox.settings import Settings as SandboxSettings
from sandbox.settings import SettingsError
from sandbox.settings import load as load_sandbox
from sandbox.settings import unknown as unknown_to_sandbox
from sandbox.variables import Variables

LONG_SECRET: Final = 16
"""Characters that a secret should have: nothing but its length keeps guesses from being right."""

# Names that belong to adapters and other parts of an installation, and share our prefix.
_FOREIGN: Final = frozenset({"CLARA_GATEWAY_TOKEN", "CLARA_GATEWAY_URL", envfile.VARIABLE})
# A database URL can hold a password; what is wrong with it is said without showing it.
_CONFIDENTIAL: Final = frozenset({"CLARA_GATEWAY_SECRET", "DATABASE_URL"})
_REMOVED_PREFIXES: Final = ("ORS_", "PROACTIVE_")


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Times are in seconds."""

    state_dir: Path
    database_url: str = field(repr=False)
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 18789
    gateway_secret: str | None = field(default=None, repr=False)
    gateway_allowed_origins: frozenset[str] = frozenset()
    gateway_max_connections: int = 4096
    gateway_socket: Path | None = None
    gateway_tls_cert: Path | None = None
    gateway_tls_key: Path | None = None
    trusted_proxies: Proxies = NO_PROXIES
    rate_node: Rate | None = None
    rate_user: Rate | None = None
    max_running: int = 256
    responder: str = "echo"
    responder_command: str | None = None
    session_timeout: float = 1800
    message_timeout: float = 300
    drain_timeout: float = 30
    keep: float | None = 90 * 86400
    keep_runs: float | None = 30 * 86400
    keep_attachments: float | None = 7 * 86400
    auto_migrate: bool = True
    lease: float = 30
    log_level: str = "INFO"
    log_format: str = "auto"
    hooks_dir: Path = Path("hooks")
    scheduler_dir: Path = Path(".")
    strict_config: bool = True
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)


RELOADED: Final = frozenset(
    {
        "gateway_allowed_origins",
        "gateway_max_connections",
        "gateway_tls_cert",
        "gateway_tls_key",
        "trusted_proxies",
        "rate_node",
        "rate_user",
        "max_running",
        "session_timeout",
        "message_timeout",
        "drain_timeout",
        "keep",
        "keep_runs",
        "keep_attachments",
        "log_level",
        "hooks_dir",
        "scheduler_dir",
    }
)
"""The settings that a reload can change; the others need a restart."""


def variable(name: str) -> str:
    """Return what a setting, by its name in `Settings`, is called where it is set."""
    special = {"database_url": "DATABASE_URL", "sandbox": "the settings of the sandboxes"}
    return special.get(name, f"CLARA_{name.upper()}")


class ConfigError(Exception):
    """The settings cannot be used; `problems` has one sentence for each thing that is wrong.

    `settings` are those that would be, with the default for each that is wrong.
    """

    def __init__(self, settings: Settings, problems: list[str], warnings: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.settings = settings
        self.problems = problems
        self.warnings = warnings


def load(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[str]]:
    """Read the settings from `environ`.

    Returns:
        The settings, and warnings: sentences about variables that have no effect.

    Raises:
        ConfigError: naming every variable that is wrong and what to write instead.
    """
    variables = Variables(environ, _CONFIDENTIAL)
    read = variables.read
    state_dir = read("CLARA_STATE_DIR", None, parsers.path) or _default_state_dir(environ)
    sandbox, sandbox_problems = _sandbox(environ)
    settings = Settings(
        state_dir=state_dir,
        database_url=read(
            "DATABASE_URL", f"sqlite:///{quote(str(state_dir))}/clarad.db", parsers.database_url
        ),
        gateway_host=read("CLARA_GATEWAY_HOST", Settings.gateway_host, parsers.host),
        gateway_port=read("CLARA_GATEWAY_PORT", Settings.gateway_port, parsers.port),
        gateway_secret=read("CLARA_GATEWAY_SECRET", None, str) or _credential(variables),
        gateway_allowed_origins=read("CLARA_GATEWAY_ALLOWED_ORIGINS", frozenset(), parsers.origins),
        gateway_max_connections=read(
            "CLARA_GATEWAY_MAX_CONNECTIONS", Settings.gateway_max_connections, parsers.count
        ),
        gateway_socket=read("CLARA_GATEWAY_SOCKET", None, parsers.path),
        gateway_tls_cert=read("CLARA_GATEWAY_TLS_CERT", None, parsers.path),
        gateway_tls_key=read("CLARA_GATEWAY_TLS_KEY", None, parsers.path),
        trusted_proxies=read("CLARA_TRUSTED_PROXIES", NO_PROXIES, parse_proxies),
        rate_node=read("CLARA_RATE_NODE", Settings.rate_node, parsers.rate),
        rate_user=read("CLARA_RATE_USER", Settings.rate_user, parsers.rate),
        max_running=read("CLARA_MAX_RUNNING", Settings.max_running, parsers.count),
        responder=read("CLARA_RESPONDER", Settings.responder, parsers.responder),
        responder_command=read("CLARA_RESPONDER_COMMAND", None, str),
        session_timeout=read("CLARA_SESSION_TIMEOUT", Settings.session_timeout, parsers.seconds),
        message_timeout=read("CLARA_MESSAGE_TIMEOUT", Settings.message_timeout, parsers.seconds),
        drain_timeout=read("CLARA_DRAIN_TIMEOUT", Settings.drain_timeout, parsers.seconds_or_zero),
        keep=read("CLARA_KEEP", Settings.keep, parsers.period),
        keep_runs=read("CLARA_KEEP_RUNS", Settings.keep_runs, parsers.period),
        keep_attachments=read("CLARA_KEEP_ATTACHMENTS", Settings.keep_attachments, parsers.period),
        auto_migrate=read("CLARA_AUTO_MIGRATE", Settings.auto_migrate, parsers.switch),
        lease=read("CLARA_LEASE", Settings.lease, parsers.seconds),
        log_level=read("CLARA_LOG_LEVEL", Settings.log_level, parsers.log_level),
        log_format=read("CLARA_LOG_FORMAT", Settings.log_format, parsers.log_format),
        hooks_dir=read("CLARA_HOOKS_DIR", Settings.hooks_dir, parsers.path),
        scheduler_dir=read("CLARA_SCHEDULER_DIR", Settings.scheduler_dir, parsers.path),
        strict_config=read("CLARA_STRICT_CONFIG", Settings.strict_config, parsers.switch),
        sandbox=sandbox,
    )
    problems = [*variables.problems, *sandbox_problems, *_contradictions(settings)]
    warnings = [*_without_effect(variables), *_weaknesses(settings)]
    if problems:
        raise ConfigError(settings, problems, warnings)
    return settings, warnings


def load_as_client(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings for a command that only asks the running daemon, which judges its own.

    A wrong one has its default; only the state directory has to be right, to find the daemon.

    Raises:
        ConfigError: the state directory is wrong.
    """
    try:
        return load(environ)[0]
    except ConfigError as error:
        wrong = [problem for problem in error.problems if problem.startswith("CLARA_STATE_DIR")]
        if wrong:
            raise ConfigError(error.settings, wrong, []) from None
        return error.settings


def _credential(variables: Variables) -> str | None:
    """Read the secret from where systemd puts it: LoadCredential= of systemd.exec(5)."""
    if not (directory := variables.environ.get("CREDENTIALS_DIRECTORY")):
        return None
    path = Path(directory, "CLARA_GATEWAY_SECRET")
    try:
        return path.read_bytes().decode().strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        why = "write it in UTF-8"
    except OSError as error:
        why = error.strerror or str(error)
    variables.problems.append(f"the credential {path} cannot be read: {why}")
    return None


def _sandbox(environ: Mapping[str, str]) -> tuple[SandboxSettings, list[str]]:
    try:
        return load_sandbox(environ), []
    except SettingsError as error:
        return error.settings, error.problems


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong only in combination."""
    problems = []
    if settings.responder == "command" and not settings.responder_command:
        problems.append(
            "CLARA_RESPONDER=command needs CLARA_RESPONDER_COMMAND: set it to the shell command "
            "that answers a message, or CLARA_RESPONDER to echo"
        )
    if settings.responder == "tools" and settings.sandbox.mode == "off":
        problems.append(
            "CLARA_RESPONDER=tools needs sandboxes: set SANDBOX_MODE to auto, docker or incus"
        )
    if settings.gateway_tls_key is not None and settings.gateway_tls_cert is None:
        problems.append("CLARA_GATEWAY_TLS_KEY needs the certificate: set CLARA_GATEWAY_TLS_CERT")
    if (settings.gateway_secret or "").startswith("clarad_"):
        problems.append(
            "CLARA_GATEWAY_SECRET begins as tokens do, with clarad_; choose another word"
        )
    if settings.gateway_secret is None and not is_loopback(settings.gateway_host):
        problems.append(
            f"CLARA_GATEWAY_HOST={settings.gateway_host!r} is reachable from other machines: set "
            "CLARA_GATEWAY_SECRET to a long random word, or the host to 127.0.0.1"
        )
    return problems


def _without_effect(variables: Variables) -> Iterator[str]:
    """Yield a sentence for each variable that was removed, or looks like a misspelt setting."""
    for name, _ in variables.unknown(*_REMOVED_PREFIXES):
        yield f"{name} has no effect: the proactive system (ORS) was removed. Delete the variable"
    for name, similar in variables.unknown("CLARA_"):
        if similar is not None and name not in _FOREIGN:
            yield f"{name} is not a setting; did you mean {similar}?"
    yield from unknown_to_sandbox(variables.environ)


def _weaknesses(settings: Settings) -> list[str]:
    """What can be used, and should not be."""
    if settings.gateway_secret is None or len(settings.gateway_secret) >= LONG_SECRET:
        return []
    return [
        f"CLARA_GATEWAY_SECRET has fewer than {LONG_SECRET} characters and may be guessed; write a "
        "long random one, such as `openssl rand -hex 32` prints"
    ]


def is_loopback(host: str) -> bool:
    """Whether binding `host` can be reached from this machine only. Looks names up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return True  # it cannot be bound either, and that error says it better
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    # systemd.exec(5): with more than one StateDirectory= the variable holds them colon-separated.
    from_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(from_systemd) if from_systemd else parsers.path("~/.local/state/clarad")
