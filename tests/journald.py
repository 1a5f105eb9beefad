"""A journald for tests: its socket, and a reader of its native protocol."""

import array
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Fields = list[tuple[str, str]]


def parse(data: bytes) -> Fields:
    """Read one record, as https://systemd.io/JOURNAL_NATIVE_PROTOCOL has it."""
    found = []
    while data:
        head, _, rest = data.partition(b"\n")
        if b"=" in head:
            name, _, value = head.partition(b"=")
        else:
            name, (length,) = head, struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest.startswith(b"\n")
            rest = rest[1:]
        found.append((name.decode("ascii"), value.decode()))
        data = rest
    return found


class Journald:
    """Takes records when it is told to; until then it stands still."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.in_memory = 0
        """How many records came as a file in memory."""

    def read(self, patience: float) -> dict[str, str] | None:
        """Take the next record; `None` if none comes within so many seconds."""
        if not select.select([self._socket], [], [], patience)[0]:
            return None
        size = array.array("i").itemsize
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(size))
        for _, _, rights in ancillary:
            (memory,) = array.array("i", rights)
            self.in_memory += 1
            with open(memory, "rb") as file:
                file.seek(0)
                data = file.read()
        return dict(parse(data))

    def read_until(self, text: str, patience: float) -> list[dict[str, str]]:
        """Take records up to the one whose message begins so."""
        found = []
        while (record := self.read(patience)) is not None:
            found.append(record)
            if record["MESSAGE"].startswith(text):
                return found
        raise AssertionError(f"no {text!r} in {[record['MESSAGE'] for record in found]}")

    def fill(self) -> None:
        """Have it take no more, until somebody reads."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
            sender.setblocking(False)
            while True:
                sender.sendto(b"MESSAGE=filling\n", self.path)

    def close(self) -> None:
        """End, and leave nothing to connect to."""
        self._socket.close()
        os.unlink(self.path)


@contextmanager
def journald(directory: Path) -> Iterator[Journald]:
    """Have one within the block."""
    made = Journald(directory / "journal")
    try:
        yield made
    finally:
        made.close()
