"""The variables that commands get. Their values never become part of a command's text."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from clarad.events import Event
from clarad.process.shell import MAX_VARIABLE
from clarad.protocol import CAUSED_BY

MAX_SCALARS: Final = 512 * 1024
"""Bytes of all `CLARA_<KEY>` variables together. Linux allows 2 MiB for everything (execve(2))."""

_IDS: Final = ("node_id", "platform", "user_id", "channel_id", "request_id", "session_id")
_NAME: Final = re.compile(r"CLARA_[A-Z0-9_]{1,64}")
_OVERHEAD: Final = 16
"""Bytes of a variable besides its name and value: the kernel counts a pointer, too."""


def of_event(event: Event) -> dict[str, str]:
    """Return an event as variables, without those that do not apply."""
    named = {
        "CLARA_EVENT_ID": event.id,
        "CLARA_EVENT_TYPE": str(event.type),
        "CLARA_TIMESTAMP": event.timestamp.isoformat(),
        "CLARA_EVENT_DATA": _json(event.data),
    }
    for name in _IDS:
        if (value := getattr(event, name)) is not None:
            named[f"CLARA_{name.upper()}"] = value
    return _scalars(event.data) | named


def of_run(run_id: str, attempt: int, caused_by: Sequence[str]) -> dict[str, str]:
    """Return the variables about the run, for every command of a hook or a task."""
    return {
        "CLARA_RUN": run_id,
        "CLARA_ATTEMPT": str(attempt),
        CAUSED_BY: " ".join([*caused_by, run_id]),
    }


def _scalars(data: dict[str, Any]) -> dict[str, str]:
    found = {}
    room = MAX_SCALARS
    for key, value in data.items():
        name = f"CLARA_{key.upper()}"
        if isinstance(value, str | int | float) and _NAME.fullmatch(name):
            text = str(value)[:MAX_VARIABLE]
            room -= len(name) + len(text.encode(errors="replace")) + _OVERHEAD
            if room < 0:
                break
            found[name] = text
    return found


def _json(data: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(data).decode()
    except UnicodeEncodeError:  # half a surrogate pair
        text = json.dumps(data, ensure_ascii=False, default=str)
        return text.encode(errors="replace").decode()
