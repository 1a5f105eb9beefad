"""A way to an engine that a test can cut: an engine that goes and comes back, for one keeper."""

import os
from pathlib import Path
from typing import Final

import trio

from tests.sandbox import engines

_CHUNK: Final = 64 * 1024


class Way:
    """A Unix socket, and behind it the engine; `variables` are settings that lead through it."""

    def __init__(self, mode: str, path: Path) -> None:
        settings = engines.settings(mode)
        host = settings.docker_host or "unix:///var/run/docker.sock"
        sockets = {"docker": host.removeprefix("unix://"), "incus": str(settings.incus_socket)}
        self._target = sockets[mode]
        self._path = path
        self.variables = {"DOCKER_HOST": f"unix://{path}", "INCUS_SOCKET": f"{path}"}

    async def open(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Lead to the engine until the scope that this is started with is cancelled."""
        with trio.CancelScope() as scope, trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(self._path))
            listener.listen(64)
            try:
                async with trio.open_nursery() as nursery:
                    task_status.started(scope)
                    while True:
                        ours, _ = await listener.accept()
                        nursery.start_soon(self._join, trio.SocketStream(ours))
            finally:
                os.unlink(self._path)

    async def _join(self, ours: trio.SocketStream) -> None:
        theirs = await trio.open_unix_socket(self._target)
        async with ours, theirs, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, ours, theirs)
            nursery.start_soon(_copy, theirs, ours)


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        while data := await source.receive_some(_CHUNK):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(target)
