"""What every engine can do, and what can be said of a run: the words that the rest is built of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

T = TypeVar("T")

UID: Final = 1000
GID: Final = 1000
HOME: Final = "/home/sandbox"


class SandboxError(Exception):
    """Something about sandboxes that a person has to know: one sentence, with the mend."""


class EngineError(SandboxError):
    """The engine is not there, or cannot do what was asked for."""


class GoneError(SandboxError):
    """The sandbox has ended under what was running in it; the next call gets a new one."""


class FullError(SandboxError):
    """There are as many sandboxes as there may be, and all belong to somebody."""


class FileError(SandboxError):
    """A file in the sandbox cannot be read, written or listed as asked; the text says why."""


class Engine(Protocol):
    """Makes and removes sandboxes. Names are the caller's, unique to each sandbox."""

    name: str

    @property
    def max_processes(self) -> int | None:
        """What the agent has to keep the user's processes to; None if the engine does."""

    @property
    def max_file(self) -> int:
        """The largest file that can be written, in bytes."""

    @property
    def disk_to_prove(self) -> int | None:
        """Bytes that a sandbox must not be able to exceed, where the engine may not see to it."""

    async def check(self) -> list[str]:
        """See whether all is there that is needed; return what holds less than was asked for.

        Raises:
            EngineError: something is missing; the text says how to get it.
        """

    async def create(self, name: str) -> trio.abc.Stream:
        """Create and start a sandbox; return the stream to its agent.

        Raises:
            EngineError: with the engine's own reason.

        Whatever it raises, something may be there: `destroy` it.
        """

    async def destroy(self, name: str) -> None:
        """Remove a sandbox, whatever runs in it. One that is gone is fine.

        Raises:
            EngineError: it may still be there.
        """

    async def names(self) -> list[str]:
        """Return the names of all sandboxes that carry our keeper's label."""

    def close(self) -> None:
        """Let go of connections; they are opened again if need be."""


async def in_thread(call: Callable[[], T], limiter: trio.CapacityLimiter, engine: str) -> T:
    """Ask an engine in a thread.

    Raises:
        EngineError: what `call` raises; or there is no thread, or no file descriptor, for it.
    """
    try:
        return await trio.to_thread.run_sync(call, limiter=limiter)
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{engine} cannot be asked: {error}") from error


@dataclass(frozen=True)
class Output:
    """What a run wrote: the first bytes, up to the cap; the last, if some were cut; how many."""

    kept: bytes = b""
    tail: bytes = b""
    total: int = 0

    @property
    def cut(self) -> int:
        """How many bytes are missing between `kept` and `tail`."""
        return self.total - len(self.kept) - len(self.tail)

    @property
    def rest(self) -> bytes:
        """What comes after `kept`: a word about what is missing, and the last bytes."""
        middle = f"\n[… {self.cut} bytes are cut …]\n" if self.cut > 0 else ""
        return middle.encode() + self.tail

    def text(self) -> str:
        """Return it for a reader, with a word about what is missing."""
        return (self.kept + self.rest).decode(errors="replace")


@dataclass(frozen=True)
class Result:
    """How a run ended. `exit_status` is negative for a signal, as in `subprocess`; times are in
    seconds. `killed` counts the processes that were killed at its end, or at its timeout.
    `made_room` says that there was no process left for it, so that the interpreter was ended first,
    with all that earlier calls had left running.
    """

    exit_status: int
    stdout: Output
    stderr: Output
    wall: float
    cpu: float
    timed_out: bool = False
    out_of_memory: bool = False
    out_of_processes: bool = False
    killed: int = 0
    made_room: bool = False
