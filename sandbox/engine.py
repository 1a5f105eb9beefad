"""The Protocol of engines, the errors, and the result of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

T = TypeVar("T")

UID: Final = 1000
GID: Final = 1000
HOME: Final = "/home/sandbox"


class SandboxError(Exception):
    """An error for people: the text is one sentence, and says how to fix it."""


class EngineError(SandboxError):
    """The engine does not answer, or cannot do what was asked for."""


class GoneError(SandboxError):
    """The sandbox ended while something ran in it; the next call gets a new one."""


class FullError(SandboxError):
    """All sandboxes that there may be belong to other owners."""


class FileError(SandboxError):
    """A file in the sandbox cannot be read, written or listed as asked; the text says why."""


class Engine(Protocol):
    """Makes and removes sandboxes. The caller gives each a unique name."""

    name: str

    @property
    def max_processes(self) -> int | None:
        """The limit of processes that the agent has to enforce; None if the engine does."""

    @property
    def max_file(self) -> int:
        """The largest file that can be written, in bytes."""

    @property
    def disk_to_verify(self) -> int | None:
        """The disk limit to verify in each sandbox; None if the engine always enforces it."""

    async def check(self) -> list[str]:
        """Check that nothing is missing; return a warning for each limit that is not enforced.

        Raises:
            EngineError: something is missing; the text says how to get it.
        """

    async def create(self, name: str) -> trio.abc.Stream:
        """Create and start a sandbox; return the stream to its agent.

        Raises:
            EngineError: with the engine's own reason.

        If it raises, a part of the sandbox may exist: call `destroy`.
        """

    async def destroy(self, name: str) -> None:
        """Remove a sandbox and all that runs in it; it need not exist.

        Raises:
            EngineError: it may still exist.
        """

    async def names(self) -> list[str]:
        """Return the names of all sandboxes with the keeper's label."""

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""


async def in_thread(call: Callable[[], T], limiter: trio.CapacityLimiter, engine: str) -> T:
    """Call an engine's blocking SDK in a thread.

    Raises:
        EngineError: what `call` raises; or there is no thread, or no file descriptor, for it.
    """
    try:
        return await trio.to_thread.run_sync(call, limiter=limiter)
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{engine} cannot be asked: {error}") from error


@dataclass(frozen=True)
class Output:
    """What a run wrote: the first bytes, up to the cap; the last, if some were cut; the total."""

    kept: bytes = b""
    tail: bytes = b""
    total: int = 0

    @property
    def cut(self) -> int:
        """How many bytes are missing between `kept` and `tail`."""
        return self.total - len(self.kept) - len(self.tail)

    @property
    def rest(self) -> bytes:
        """What follows `kept`: a note on the missing bytes, and the last bytes."""
        middle = f"\n[… {self.cut} bytes are cut …]\n" if self.cut > 0 else ""
        return middle.encode() + self.tail

    def text(self) -> str:
        """Return the output as text, with a note on the missing bytes."""
        return (self.kept + self.rest).decode(errors="replace")


@dataclass(frozen=True)
class Result:
    """How a run ended. Times are in seconds.

    `exit_status` is negative for a signal, as in `subprocess`. `killed` counts the processes that
    were killed at its end, or at its timeout. With `made_room` no process was left for it, so the
    interpreter was killed first, with all that earlier calls had left running.
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
