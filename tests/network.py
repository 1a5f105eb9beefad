"""The network between a daemon and PostgreSQL: a TCP proxy that a test can cut."""

import selectors
import socket
import threading
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url


class Network:
    """Passes bytes on until it is `cut`; then nothing gets through, and nobody can connect."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        directory = parsed.query["host"]
        assert isinstance(directory, str)
        self._behind = Path(directory, ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[socket.socket] = set()
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
        with self._lock:
            self._is_cut = True
            for end in self._pairs:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False

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
                self._pairs |= {near, far}
            try:
                self._pass_on(near, far)
            finally:
                with self._lock:
                    self._pairs -= {near, far}

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready.select():
                    source = near if key.fileobj is near else far
                    if not (data := source.recv(65536)):
                        return
                    if source is near and self._is_lost(data, far):
                        return
                    key.data.sendall(data)

    def _is_lost(self, data: bytes, far: socket.socket) -> bool:
        if self._commit_to_lose is None or b"COMMIT\0" not in data:
            return False
        if self._commit_to_lose == "answer":
            far.sendall(data)
            far.recv(65536)
        self._commit_to_lose = None
        self._is_cut = self._cut_after_commit
        self._lost_commit.set()
        return True
