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
                _pass_on(near, far)
            finally:
                with self._lock:
                    self._pairs -= {near, far}


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        ready.register(one, selectors.EVENT_READ, other)
        ready.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in ready.select():
                source = one if key.fileobj is one else other
                if not (data := source.recv(65536)):
                    return
                key.data.sendall(data)
