"""A wall clock that can be stepped: `python -m tests.soak.clock FILE run` is a clarad that has it.

The kernel has one wall clock for all processes, and it is not ours to set. So within the daemon
every look at it goes through here. (Tasks go by PostgreSQL's clock if that is the database; it is
right.)
"""

import mmap
import struct
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

_AHEAD: Final = struct.Struct("d")


class Clock:
    """The soak's hand on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_ahead(0)

    def set_ahead(self, seconds: float) -> None:
        """Have it be ahead of the machine's by so much; behind, if it is negative."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.write(_AHEAD.pack(seconds))
        else:
            self.path.write_bytes(_AHEAD.pack(seconds))


def _stepped(ahead: Callable[[], float]) -> type:
    """Return what stands in for `datetime`: it makes real ones, and has another `now`."""

    class Everything(type):
        def __getattr__(cls, name: str) -> Any:
            return getattr(datetime, name)

        def __call__(cls, *arguments: Any, **named: Any) -> datetime:
            return datetime(*arguments, **named)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Stepped(metaclass=Everything):
        @staticmethod
        def now(zone: tzinfo | None = None) -> datetime:
            return datetime.now(zone) + timedelta(seconds=ahead())

    return Stepped


def _install(path: Path) -> None:
    """Have all modules of clarad go by the clock in this file; they have to be there already."""
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), _AHEAD.size, access=mmap.ACCESS_READ)
    stepped = _stepped(lambda: float(_AHEAD.unpack_from(shared)[0]))
    for name, module in list(sys.modules.items()):
        if name.startswith("clarad.") and "datetime.now(" in Path(str(module.__file__)).read_text():
            vars(module)["datetime"] = stepped


if __name__ == "__main__":
    from clarad import cli
    from clarad.app import service  # noqa: F401 - what the daemon looks at the clock with

    _install(Path(sys.argv.pop(1)))
    sys.argv[0] = "clarad"
    sys.exit(cli.main())
