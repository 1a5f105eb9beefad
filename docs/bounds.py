"""Writes docs/bounds.md: every limit of clarad, with the constants that set it.

`make generate` calls this. docs/bounds.md.in is the page with the paths of constants in the places
of their values, such as `{clarad.transport.outbox.MAX_BYTES:bytes}`. In a table the last column
gets the names of the constants in the row.
"""

import string
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from clarad.config import Settings
from clarad.delivery import node, replay
from clarad.messages import admission, turn
from clarad.transport import outbox, stream

TEMPLATE: Final = Path(__file__).with_name("bounds.md.in")

KIB: Final = 1024
MIB: Final = 1024 * KIB

_DEFAULTS: Final = ("clarad.config.Settings.", "sandbox.Settings.")
"""Defaults of settings: their rows name the environment variable instead."""


def page() -> str:
    """Return the text of docs/bounds.md.

    Raises:
        AttributeError, ImportError: the template names a constant that is not there.
    """
    lines = TEMPLATE.read_text().splitlines(keepends=True)
    return "".join(map(_fill, lines))


def worst_case() -> Mapping[str, int]:
    """Return what the memory budgets come to when all connections stall and flood, in bytes."""
    connections, running = Settings.gateway_max_connections, Settings.max_running
    answers = turn.MAX_SHARED + running * turn.OWN_BYTES
    return {
        "connections": connections,
        "running": running,
        "outboxes": outbox.MAX_SHARED + connections * outbox.OWN_BYTES,
        "received": stream.MAX_RECEIVED + connections * stream.OWN_BYTES,
        "messages": admission.MAX_SHARED + connections * admission.OWN_BYTES,
        "answers": 3 * answers,  # the text, and twice as JSON while it is being stored
        "replay": replay.MAX_SHARED,
        "had": 40 * node.MAX_SENT_TERMINALS * connections,
    }


class _Constants(string.Formatter):
    """Fills a line with the values of the constants that it names, and collects their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if field_name in kwargs:
            return kwargs[field_name], field_name
        if not field_name.startswith(_DEFAULTS):
            self.names.append(field_name.removeprefix("clarad."))
        return resolve_name(field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        match format_spec:
            case "bytes":
                return _size(value)
            case "mib":
                return f"{round(value / MIB):,} MiB"
            case "time":
                return _period(value.total_seconds() if isinstance(value, timedelta) else value)
            case _:
                return f"{value:,}"


def _fill(line: str) -> str:
    constants = _Constants()
    filled = constants.vformat(line, (), worst_case())
    if not line.startswith("|") or not constants.names:
        return filled
    *cells, settings, end = filled.split("|")
    names = [*filter(None, [settings.strip()]), *(f"`{name}`" for name in constants.names)]
    return "|".join([*cells, f" {', '.join(names)} ", end])


def _size(value: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if value % unit == 0:
            return f"{value // unit:,} {name}"
    return f"{value:,} bytes"


def _period(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit and seconds % unit == 0:
            return f"{seconds // unit:,.0f} {name}"
    return f"{seconds * 1000:g} ms" if seconds < 0.1 else f"{seconds:g} s"
