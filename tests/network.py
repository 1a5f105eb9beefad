"""The network between a daemon and PostgreSQL: a TCP proxy that a test can cut, or have lose all.

Whoever is `cut` off is told so, as by a router that resets. What `vanish`es is not: the bytes, and
the ends of connections, stay where they are, as if all packets were lost.
"""

import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

THERE: Final = "there"
BACK: Final = "back"
"""The directions: to the database, and from it."""


class _Ways:
    """What is open, of the connections that were made before some network was given up."""

    def __init__(self) -> None:
        self.open = {THERE: threading.Event(), BACK: threading.Event()}
        self.reopen()

    def reopen(self) -> None:
        for way in self.open.values():
            way.set()


class Network:
    """Passes bytes on until it is `cut`; then nothing gets through, and nobody can connect."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        directory = parsed.query["host"]
        assert isinstance(directory, str)
        self._behind = Path(directory, ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: set[socket.socket] = set()
        self._all_ways = [_Ways()]
        self._is_cut = False
        self._commit_to_lose: str | None = None
        self._cut_after_commit = False
        self._lost_commit = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()
        host, port = self._listener.getsockname()
        to_here = parsed.set(host=host, port=port, query={})
        self.url = to_here.render_as_string(hide_password=False)

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            self._is_cut = True
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def vanish(self, directions: Collection[str] = (THERE, BACK)) -> None:
        """Let nothing get through in these directions, and nobody know."""
        with self._lock:
            for direction in directions:
                self._all_ways[-1].open[direction].clear()

    def mend(self, *, forgotten: bool = False) -> None:
        """Let everything through; of connections that are `forgotten` nothing is heard any more."""
        with self._lock:
            self._is_cut = False
            if forgotten:
                self._all_ways.append(_Ways())
            else:
                self._all_ways[-1].reopen()

    def lose_commit(self, *, arrives: bool) -> None:
        """Lose the connection over the next COMMIT: before it arrives, or with its answer."""
        self._commit_to_lose = "answer" if arrives else "question"

    def lose_commit_and_all(self, *, arrives: bool) -> None:
        """Be cut from then on."""
        self._cut_after_commit = True
        self.lose_commit(arrives=arrives)

    def wait_until_commit_is_lost(self, timeout: float) -> None:
        """Wait for it, in seconds."""
        assert self._lost_commit.wait(timeout)

    def close(self) -> None:
        self.cut()
        for ways in self._all_ways:
            ways.reopen()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far, suppress(OSError):
            with self._lock:
                if self._is_cut:
                    return
                far.connect(str(self._behind))
                self._ends |= {near, far}
                ways = self._all_ways[-1].open
            try:
                pass_back = partial(self._pass_on, far, near, ways[BACK])
                back = threading.Thread(target=pass_back, daemon=True)
                back.start()
                self._pass_on(near, far, ways[THERE], may_lose=True)
                back.join()
            finally:
                with self._lock:
                    self._ends -= {near, far}

    def _pass_on(
        self,
        source: socket.socket,
        target: socket.socket,
        way: threading.Event,
        *,
        may_lose: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                way.wait()
                if may_lose and self._is_lost(data, source, target):
                    break
                target.sendall(data)
        way.wait()
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_lost(self, data: bytes, near: socket.socket, far: socket.socket) -> bool:
        if self._commit_to_lose is None or b"COMMIT\0" not in data:
            return False
        near.shutdown(socket.SHUT_RDWR)
        if self._commit_to_lose == "answer":
            far.sendall(data)
        self._commit_to_lose = None
        self._is_cut = self._cut_after_commit
        self._lost_commit.set()
        return True
