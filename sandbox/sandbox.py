"""One sandbox: running commands in it."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from sandbox.engine import GID, HOME, UID, Engine, FileError, GoneError, Output, Result
from sandbox.inside import program
from sandbox.replies import Ended
from sandbox.session import OnOutput, Running, Session

OUTPUT_CAP: Final = 256 << 10
"""Bytes kept of each output, unless the caller wants another number."""

MAX_FILE: Final = 32 << 20
"""Bytes of a file that can be read or written at once."""

MAX_ENTRIES: Final = 1000
"""Entries of a directory that are listed."""

UNKILLABLE: Final = 5.0
"""Seconds that an agent has to end a run; then the whole sandbox is ended instead."""

_GONE: Final = (
    "the sandbox has ended under what ran in it (its engine stopped, or it ran out of memory); "
    "its files are gone, and the next call gets a new one"
)
_EXHAUSTED: Final = (
    "no process could be started in the sandbox, though nothing ran in it, and it was ended; its "
    "files are gone, and the next call gets a new one"
)
_ENVIRONMENT: Final = {
    "PATH": f"{HOME}/.local/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": HOME,
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Entry:
    """A directory's entry; `size` is in bytes, `kind` is file, directory, link or other."""

    name: str
    kind: str
    size: int


class Sandbox:
    """One sandbox, which belongs to one owner until it ends."""

    def __init__(self, name: str, engine: Engine, session: Session) -> None:
        self.name = name
        self.session = session
        self.used_at = trio.current_time()
        self._engine = engine
        self._busy = 0

    @property
    def is_busy(self) -> bool:
        """Whether a caller uses it."""
        return self._busy > 0

    @property
    def is_lost(self) -> bool:
        """Whether it has ended."""
        return self.session.is_lost

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = HOME,
        timeout: float | None = None,
        cap: int = OUTPUT_CAP,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Result:
        """Run an argument vector, or a shell's command, to its end.

        Args:
            env: In addition to what every run has (PATH, HOME and the like).
            timeout: Seconds after which it is killed; the result says so.
            cap: Bytes kept of each output.
            on_output: Called with each piece of output as it comes, up to the cap.
            on_killed: Called with the number of killed processes if a cancellation takes the
                result.

        Raises:
            GoneError: the sandbox has ended.

        Cancelling kills every process of the run before the cancellation goes on.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        await trio.lowlevel.checkpoint()
        made_room = False
        with self.in_use():
            while True:
                running = self.start(argv, env=env, cwd=cwd, cap=cap, on_output=on_output)
                async with self.kill_on_error(running, on_killed), trio.open_nursery() as nursery:
                    nursery.start_soon(running.feed, stdin)
                    timed_out = not await self.wait(running, timeout)
                if not running.is_refused:
                    break
                if await self.make_room(running):
                    made_room = True
                elif self.session.running > 0:
                    break  # they have the processes, and will end
        result = result_of(running, running.end, timed_out=timed_out)
        return replace(result, made_room=made_room)

    async def make_room(self, refused: Running) -> bool:
        """Kill the idle interpreter, since no process was left for a run.

        Returns:
            Whether there was one. If not, other runs have the processes, or had them.

        Raises:
            GoneError: there were no other runs either, and the sandbox has been ended as unusable.
        """
        idle = self.session.idle
        for running in idle:
            await self.kill(running)
        # `began_alone`, since another run may have ended between the refusal and now.
        if refused.began_alone and not idle and self.session.running == 0:
            self.session.abandon()  # the keeper sees it, and removes the sandbox
            raise GoneError(_EXHAUSTED)
        return bool(idle)

    async def read_file(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            FileError: it cannot be read, or is larger than `MAX_FILE`.
        """
        return await self._file({"do": "read", "path": path, "max": MAX_FILE}, cap=MAX_FILE)

    async def write_file(self, path: str, content: bytes) -> None:
        """Write a file, whole or not at all; directories are made as needed.

        Raises:
            FileError: it cannot be written.
        """
        await self._file({"do": "write", "path": path}, content)

    async def list_files(self, path: str = ".") -> list[Entry]:
        """Return a directory's entries by name, at most `MAX_ENTRIES`.

        Raises:
            FileError: it cannot be listed.
        """
        listed = await self._file({"do": "list", "path": path, "max": MAX_ENTRIES}, cap=1 << 20)
        return [Entry(*entry) for entry in json.loads(listed)]

    async def unpack(self, path: str, target: str) -> list[str]:
        """Unpack a zip or tar archive; return the names of what was written.

        Raises:
            FileError: it is no archive, would write elsewhere, or is too much.
        """
        request = {"do": "unpack", "path": path, "target": target}
        names: list[str] = json.loads(await self._file(request, cap=4 << 20))
        return names

    async def _file(
        self, request: dict[str, Any], stdin: bytes = b"", cap: int = OUTPUT_CAP
    ) -> bytes:
        argv = ["python3", "-I", "-S", "-c", program("files"), json.dumps(request)]
        result = await self.run(argv, stdin=stdin, cap=cap)
        if result.exit_status != 0:
            said = result.stderr.text().strip().rpartition("\n")[2]
            raise FileError(said or f"{request['path']}: the sandbox has no room for it")
        return result.stdout.kept

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the sandbox from counting as idle within the block."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.used_at = trio.current_time()

    def start(
        self,
        argv: list[str],
        *,
        cap: int,
        env: Mapping[str, str] | None = None,
        cwd: str = HOME,
        on_output: OnOutput | None = None,
        calls: bool = False,
    ) -> Running:
        """Start a run, which the caller has to await within `kill_on_error`.

        Raises:
            GoneError: the sandbox has ended.
        """
        request = {
            "argv": argv,
            "env": {**_ENVIRONMENT, **(env or {})},
            "cwd": cwd,
            "uid": UID,
            "gid": GID,
            "cap": cap,
            "file": self._engine.max_file,
            "processes": self._engine.max_processes,
            "calls": calls,
        }
        return self.session.start(request, on_output)

    async def wait(self, running: Running, timeout: float | None) -> bool:
        """Wait until a run is over; return False if it was killed at its timeout."""
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await running.over.wait()
        if running.over.is_set():
            return True
        await self.kill(running)
        return False

    async def kill(self, running: Running) -> None:
        """Kill a run and wait until nothing of it is left. Cancelling has no effect."""
        with trio.CancelScope(shield=True):
            running.kill()
            with trio.move_on_after(UNKILLABLE):
                await running.over.wait()
            if not running.over.is_set():
                self.session.abandon()  # the keeper sees it, and removes the sandbox

    @asynccontextmanager
    async def kill_on_error(
        self, running: Running, on_killed: Callable[[int], None] | None
    ) -> AsyncIterator[None]:
        """Kill a run if the block is cancelled or fails; raise what its `on_output` has raised."""
        try:
            yield
        except BaseException:
            if not running.over.is_set():
                await self.kill(running)
            # Also for a run that ended at the same moment, since nobody will get its result.
            if on_killed is not None and not running.is_refused:
                on_killed(running.killed)
            raise
        if running.failure is not None:
            raise running.failure


def result_of(
    running: Running, ended: Ended | None, *, timed_out: bool, wall: float | None = None
) -> Result:
    """Return the result of a run, or of a call, that is over.

    Raises:
        GoneError: the sandbox ended during it.
    """
    if ended is None:
        raise GoneError(_GONE)
    stdout, stderr = running.output("stdout", ended), running.output("stderr", ended)
    if ended.error is not None:  # it was never started
        text = f"no process can be started: {ended.error}\n".encode()
        stderr = Output(text, b"", len(text))
    return Result(
        exit_status=126 if ended.status is None else ended.status,
        stdout=stdout,
        stderr=stderr,
        wall=ended.wall if wall is None else wall,
        cpu=ended.cpu,
        timed_out=timed_out,
        out_of_memory=ended.oom > 0,
        out_of_processes=ended.pids > 0,
        killed=ended.killed,
    )
