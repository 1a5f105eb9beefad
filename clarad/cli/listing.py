"""How lists and runs are shown: aligned columns for people, JSON lines for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from clarad.adapters.terminal import BIDI_CONTROLS, HARMLESS

_BLOCKS: Final = {"stdout": "standard output", "stderr": "standard error"}

_IN_A_CELL: Final = HARMLESS | dict.fromkeys(map(ord, "\n\t"), " ")

# JSON escapes the other control characters by itself.
_ESCAPES: Final = {c: f"\\u{c:04x}" for c in (*range(0x7F, 0xA0), *BIDI_CONTROLS)}


def show(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows: these columns as a table, or each whole row as a line of JSON."""
    if as_json:
        for row in rows:
            print(_json(row))
        return
    lines = [[_cell(row.get(column)) for column in columns] for row in rows]
    if not lines:
        print("none")
        return
    lines.insert(0, [_heading(column, columns) for column in columns])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _heading(column: str, columns: Sequence[str]) -> str:
    """Return a column's heading: `next` for `next_at`, unless there is a column `next` as well."""
    short = column.removesuffix("_at")
    return (column if short != column and short in columns else short).replace("_", " ")


def show_one(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Print all fields of one row, a line each, and multi-line output after them."""
    if as_json:
        print(_json(row))
        return
    for name, value in row.items():
        if name not in _BLOCKS and not name.endswith("_cut") and value not in (None, ""):
            print(f"{name.replace('_', ' '):12}  {_cell(value)}")
    for name, title in _BLOCKS.items():
        if text := row.get(name):
            cut = row.get(f"{name}_cut")
            print(f"\n{title}{f' ({cut} bytes before this were cut)' if cut else ''}:")
            print(text.translate(HARMLESS).rstrip("\n"))


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone().isoformat(" ", "seconds")
        case float():
            return f"{value:.3f}"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(_cell, value)) or "-"
        case _:
            return str(value).translate(_IN_A_CELL)


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(row, default=_as_text, ensure_ascii=False).translate(_ESCAPES)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
