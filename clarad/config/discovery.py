"""The file in which the daemon announces its addresses to the other commands."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from clarad.config import files

FILE_NAME: Final = "gateway.json"
"""In the state directory, while the daemon accepts connections."""

CONTROL_NAME: Final = "control.sock"


class Address(NamedTuple):
    """Where adapters connect."""

    host: str
    port: int
    tls: bool = False


def announce(state_dir: Path, where: Address, pid: int, *, control: Path) -> None:
    """Write the file, atomically.

    Raises:
        files.Unwritable: they cannot be written.
    """
    found = where._asdict() | {"pid": pid, "control": os.fspath(control)}
    files.replace(state_dir / FILE_NAME, json.dumps(found) + "\n")


def withdraw(state_dir: Path) -> None:
    """Remove the file."""
    (state_dir / FILE_NAME).unlink(missing_ok=True)


def find(state_dir: Path) -> Address | None:
    """Return the address of the daemon with this state directory; `None` if it announces none."""
    try:
        found = _read(state_dir)
        return Address(str(found["host"]), int(found["port"]), bool(found.get("tls")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_control(state_dir: Path) -> Path | None:
    """Return the control socket of that daemon; `None` if it announces none."""
    try:
        return Path(_read(state_dir)["control"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(state_dir: Path) -> Any:
    return json.loads((state_dir / FILE_NAME).read_text())


def control_path(state_dir: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the daemon makes its control socket.

    That is `$RUNTIME_DIRECTORY`, in the first directory if there are several (systemd.exec(5)),
    else the state directory.
    """
    runtime, _, _ = environ.get("RUNTIME_DIRECTORY", "").partition(":")
    return (Path(runtime) if runtime else state_dir) / CONTROL_NAME


def control_paths(state_dir: Path, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where its control socket may be, the likeliest first.

    A command need not have the daemon's `$RUNTIME_DIRECTORY`, nor may it have to read the state
    directory.
    """
    likely = (
        control_path(state_dir, environ),
        find_control(state_dir),
        state_dir / CONTROL_NAME,
    )
    return list(dict.fromkeys(path for path in likely if path is not None))


def url(host: str, port: int, tls: bool = False) -> str:
    """Return the address as a client writes it; where every address is bound, the loopback one."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    scheme = "wss" if tls else "ws"
    return (
        f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
    )
