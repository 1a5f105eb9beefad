"""Where the daemon listens: written down for `clarad chat` and `send`, and read by them."""

import json
from pathlib import Path
from typing import Final

FILE_NAME: Final = "gateway.json"
"""Lies in the state directory while the daemon takes connections."""


def announce(state_dir: Path, host: str, port: int, pid: int) -> None:
    """Write the address down, so that a reader finds all of it or none."""
    beside = state_dir / f"{FILE_NAME}.new"
    beside.write_text(json.dumps({"host": host, "port": port, "pid": pid}) + "\n")
    beside.replace(state_dir / FILE_NAME)


def withdraw(state_dir: Path) -> None:
    """Take the address back."""
    (state_dir / FILE_NAME).unlink(missing_ok=True)


def find(state_dir: Path) -> tuple[str, int] | None:
    """Return the address of the daemon that uses this directory, `None` if there is none to see."""
    try:
        found = json.loads((state_dir / FILE_NAME).read_text())
        return str(found["host"]), int(found["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def url(host: str, port: int) -> str:
    """Return the address as a client writes it; where every address is bound, the loopback one."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"ws://[{reachable}]:{port}" if ":" in reachable else f"ws://{reachable}:{port}"
