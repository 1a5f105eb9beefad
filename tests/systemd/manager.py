"""The other side: hears what a process tells systemd, and keeps what it wants kept."""

import array
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import trio

PATIENCE: Final = 30
"""Seconds until something that has to be told counts as not being told."""


class Told(NamedTuple):
    """One datagram: its assignments, and the sockets that came with it."""

    assignments: dict[str, str]
    sockets: list[socket.socket]


class Manager:
    """Listens at `address`, as $NOTIFY_SOCKET has it; `heard` is all that was told so far."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self.heard: list[dict[str, str]] = []
        self.kept: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if self.address[0] == "@" else self.address)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        for one in self.kept:
            one.close()

    def take(self) -> Told:
        """Return the next datagram; `BlockingIOError` if there is none."""
        room = socket.CMSG_SPACE(16 * array.array("i").itemsize)
        data, attached, _, _ = self._socket.recvmsg(65536, room)
        descriptors = array.array("i")
        for _, _, rights in attached:
            descriptors.frombytes(rights)
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        self.kept += sockets
        told = Told(dict(line.split("=", 1) for line in data.decode().split("\n")), sockets)
        self.heard.append(told.assignments)
        return told

    def take_all(self) -> list[dict[str, str]]:
        """Return the assignments of every datagram that is there."""
        before = len(self.heard)
        with suppress(BlockingIOError):
            while True:
                self.take()
        return self.heard[before:]

    async def receive(self) -> Told:
        """Wait for the next datagram."""
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self._socket)
        return self.take()

    async def until(self, name: str, *words: str) -> Told:
        """Wait for the first datagram that assigns to `name` something with all these words."""
        while True:
            told = await self.receive()
            text = told.assignments.get(name)
            if text is not None and all(word in text for word in words):
                return told
