"""hooks.yaml and scheduler.yaml of a daemon that is measured, and its commands run without it."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trio

Entry = Mapping[str, Any]


def write_hooks(state: Path, hooks: Iterable[Entry]) -> None:
    """Write hooks where the daemon on this state looks for them."""
    (state / "hooks").mkdir(exist_ok=True)
    _write(state / "hooks" / "hooks.yaml", "hooks", hooks)


def write_tasks(state: Path, tasks: Iterable[Entry]) -> None:
    """Write tasks where the daemon on this state looks for them."""
    _write(state / "scheduler.yaml", "tasks", tasks)


async def run_bare(command: str, **variables: str) -> float:
    """Run a command as plainly as Trio can, with all its output, and return when it was asked for.

    That is in seconds since the epoch.
    """
    asked_at = time.time()
    await trio.run_process(
        ["/bin/sh", "-c", command],
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    return asked_at


def _write(path: Path, key: str, entries: Iterable[Entry]) -> None:
    # Every key on a line of its own, as people write it. A text in JSON is one in YAML.
    lines = [f"{key}:"]
    for entry in entries:
        written = [f"{name}: {json.dumps(value)}" for name, value in entry.items()]
        lines += ["  - " + "\n    ".join(written), ""]
    path.write_text("\n".join(lines))
