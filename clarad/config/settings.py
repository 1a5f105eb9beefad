"""The settings of the daemon: read once, from the environment, and refused as a whole if wrong."""

import difflib
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from clarad.config import envfile
from clarad.config.proxies import NO_PROXIES, Proxies
from clarad.config.proxies import parse as parse_proxies
from clarad.limits.rate import Rate
from sandbox.settings import Settings as SandboxSettings
from sandbox.settings import SettingsError
from sandbox.settings import load as load_sandbox
from sandbox.settings import unknown as unknown_to_sandbox

T = TypeVar("T")

RESPONDERS: Final = ("echo", "command", "tools")
LOG_FORMATS: Final = ("auto", "text", "json", "journal")

LONG_SECRET: Final = 16
"""Characters that a secret should have: nothing but its length keeps guesses from being right."""

# Names that belong to adapters and other parts of an installation, and share our prefix.
_FOREIGN: Final = frozenset({"CLARA_GATEWAY_TOKEN", "CLARA_GATEWAY_URL", envfile.VARIABLE})
# A database URL can hold a password; what is wrong with it is said without showing it.
_CONFIDENTIAL: Final = frozenset({"CLARA_GATEWAY_SECRET", "DATABASE_URL"})
_DATABASE_FORMS: Final = (
    "write sqlite or postgresql, as sqlite:////path/file.db or postgresql://user@host:port/name"
)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 36_500 * 86400  # a hundred years, and far from where dates end
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


class _Reader:
    """Reads variables one by one and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []
        self.known: set[str] = set()

    def read(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        """Read one variable; an empty one counts as not set, as compose files write it."""
        self.known.add(name)
        text = self.environ.get(name, "").strip()
        if not text:
            return default
        try:
            text.encode()
        except UnicodeEncodeError:  # os.environ keeps such bytes as lone surrogates
            self.problems.append(f"{name}: write it in UTF-8")
            return default
        try:
            return parse(text)
        except ValueError as error:
            shown = name if name in _CONFIDENTIAL else f"{name}={text!r}"
            self.problems.append(f"{shown}: {error}")
            return default


def load(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[str]]:
    """Read the settings from `environ`.

    Returns:
        The settings, and warnings: sentences about variables that have no effect.

    Raises:
        ConfigError: naming every variable that is wrong and what to write instead.
    """
    reader = _Reader(environ)
    read = reader.read
    state_dir = read("CLARA_STATE_DIR", None, _path) or _default_state_dir(environ)
    sandbox, sandbox_problems = _sandbox(environ)
    settings = Settings(
        state_dir=state_dir,
        database_url=read(
            "DATABASE_URL", f"sqlite:///{quote(str(state_dir))}/clarad.db", _database_url
        ),
        gateway_host=read("CLARA_GATEWAY_HOST", Settings.gateway_host, _host),
        gateway_port=read("CLARA_GATEWAY_PORT", Settings.gateway_port, _port),
        gateway_secret=read("CLARA_GATEWAY_SECRET", None, str) or _credential(reader),
        gateway_allowed_origins=read("CLARA_GATEWAY_ALLOWED_ORIGINS", frozenset(), _origins),
        gateway_max_connections=read(
            "CLARA_GATEWAY_MAX_CONNECTIONS", Settings.gateway_max_connections, _count
        ),
        gateway_socket=read("CLARA_GATEWAY_SOCKET", None, _path),
        gateway_tls_cert=read("CLARA_GATEWAY_TLS_CERT", None, _path),
        gateway_tls_key=read("CLARA_GATEWAY_TLS_KEY", None, _path),
        trusted_proxies=read("CLARA_TRUSTED_PROXIES", NO_PROXIES, parse_proxies),
        rate_node=read("CLARA_RATE_NODE", Settings.rate_node, _rate),
        rate_user=read("CLARA_RATE_USER", Settings.rate_user, _rate),
        max_running=read("CLARA_MAX_RUNNING", Settings.max_running, _count),
        responder=read("CLARA_RESPONDER", Settings.responder, _responder),
        responder_command=read("CLARA_RESPONDER_COMMAND", None, str),
        session_timeout=read("CLARA_SESSION_TIMEOUT", Settings.session_timeout, _seconds),
        message_timeout=read("CLARA_MESSAGE_TIMEOUT", Settings.message_timeout, _seconds),
        drain_timeout=read("CLARA_DRAIN_TIMEOUT", Settings.drain_timeout, _seconds_or_zero),
        keep=read("CLARA_KEEP", Settings.keep, _period),
        keep_runs=read("CLARA_KEEP_RUNS", Settings.keep_runs, _period),
        keep_attachments=read("CLARA_KEEP_ATTACHMENTS", Settings.keep_attachments, _period),
        auto_migrate=read("CLARA_AUTO_MIGRATE", Settings.auto_migrate, _switch),
        lease=read("CLARA_LEASE", Settings.lease, _seconds),
        log_level=read("CLARA_LOG_LEVEL", Settings.log_level, _log_level),
        log_format=read("CLARA_LOG_FORMAT", Settings.log_format, _log_format),
        hooks_dir=read("CLARA_HOOKS_DIR", Settings.hooks_dir, _path),
        scheduler_dir=read("CLARA_SCHEDULER_DIR", Settings.scheduler_dir, _path),
        strict_config=read("CLARA_STRICT_CONFIG", Settings.strict_config, _switch),
        sandbox=sandbox,
    )
    reader.problems += sandbox_problems
    reader.problems += _contradictions(settings)
    warnings = _warnings(environ, reader.known) + _weaknesses(settings)
    if reader.problems:
        raise ConfigError(settings, reader.problems, warnings)
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


def _credential(reader: _Reader) -> str | None:
    """Read the secret from where systemd puts it: LoadCredential= of systemd.exec(5)."""
    if not (directory := reader.environ.get("CREDENTIALS_DIRECTORY")):
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
    reader.problems.append(f"the credential {path} cannot be read: {why}")
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


def _warnings(environ: Mapping[str, str], known: set[str]) -> list[str]:
    warnings = [
        f"{name} has no effect: the proactive system (ORS) was removed. Delete the variable"
        for name in sorted(environ)
        if name.startswith(_REMOVED_PREFIXES)
    ]
    for name in sorted(environ):
        if name.startswith("CLARA_") and name not in known | _FOREIGN:
            close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85)
            warnings += [f"{name} is not a setting; did you mean {close[0]}?"] if close else []
    return warnings + unknown_to_sandbox(environ)


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
    return Path(from_systemd) if from_systemd else _path("~/.local/state/clarad")


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("nobody knows where this home is; write the whole path") from None


def _database_url(text: str) -> str:
    """SQLAlchemy wants the driver named; `postgres://` is what hosting services hand out."""
    # Imported only where the variable is set: `clarad chat` can do without.
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_DATABASE_FORMS) from None
    match url.drivername:
        case "postgres" | "postgresql" | "postgresql+psycopg":
            url = url.set(drivername="postgresql+psycopg")
        case "sqlite" | "sqlite+pysqlite":
            if url.host is not None:
                raise ValueError(_DATABASE_FORMS)
            in_memory = not url.database or url.database.startswith((":memory:", "file:"))
            if in_memory or url.query.get("mode") == "memory":
                raise ValueError("a database in memory is lost at every stop; name a file")
            url = url.set(drivername="sqlite")
        case _:
            raise ValueError(_DATABASE_FORMS)
    return url.render_as_string(hide_password=False)


def _host(text: str) -> str:
    try:
        text.encode("idna")
    except UnicodeError:
        raise ValueError("no host can be called so; write an address, such as 127.0.0.1") from None
    return text


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError("write a number from 0 (any free port) to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("write a whole number from 1")
    return int(text)


def _rate(text: str) -> Rate:
    per_minute, slash, at_once = text.partition("/")
    try:
        rate = _count(per_minute)
        return Rate(rate, _count(at_once) if slash else rate)
    except ValueError:
        raise ValueError(
            "write messages a minute, such as 60, or 60/10 for no more than 10 at once"
        ) from None


def _seconds_or_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("write a number of seconds, such as 30 or 0.5")
    return value


def _seconds(text: str) -> float:
    value = _seconds_or_zero(text)
    if value == 0:
        raise ValueError("write a number of seconds above 0")
    return value


def _period(text: str) -> float | None:
    """Read how long to keep something, in seconds; `None` is for as long as there is room."""
    if text.lower() == "forever":
        return None
    number, unit = text[:-1], _UNITS.get(text[-1:])
    is_number = number.isascii() and number.isdigit() and len(number) <= 9
    seconds = int(number) * unit if is_number and unit is not None else 0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(
            "write a whole number with its unit, s, m, h or d, such as 90d; or forever"
        )
    return float(seconds)


def _switch(text: str) -> bool:
    switch = {"1": True, "true": True, "yes": True, "on": True}
    switch |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in switch:
        raise ValueError("write 1 or 0")
    return switch[text.lower()]


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        close = difflib.get_close_matches(text, choices, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{hint}write one of {', '.join(choices)}")
    return text


def _responder(text: str) -> str:
    return _choice(text, RESPONDERS)


def _log_level(text: str) -> str:
    return _choice(text.upper(), ("DEBUG", "INFO", "WARNING", "ERROR"))


def _log_format(text: str) -> str:
    return _choice(text.lower(), LOG_FORMATS)


def _origins(text: str) -> frozenset[str]:
    origins = [origin.strip().rstrip("/") for origin in text.split(",") if origin.strip()]
    for origin in origins:
        if "://" not in origin:
            raise ValueError(
                f"write {origin!r} with its scheme, such as https://chat.example.org; "
                "separate several with commas"
            )
    return frozenset(origin.lower() for origin in origins)
