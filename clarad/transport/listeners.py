"""Endpoints: the TCP ports and socket files that the daemon listens at.

An endpoint that is closed and opened again has the same address: clients find a gateway that failed
and was restarted by its supervisor.
"""

import errno
import logging
import os
import resource
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

log = logging.getLogger(__name__)

MAX_NAME: Final = 107
"""Bytes of a path that fit into a socket address, besides its NUL (unix(7))."""

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): process, user, group


class CannotListen(Exception):  # noqa: N818 - it is an answer, not a fault
    """The address cannot be bound; the text says why and what to do."""


Address_co = TypeVar("Address_co", covariant=True)


class Endpoint(Protocol[Address_co]):
    """An address to listen at; it can be opened again after it was closed."""

    async def open(self) -> list[trio.SocketListener]:
        """Bind and listen; raises `CannotListen`."""

    @property
    def address(self) -> Address_co:
        """The address that `open` has bound."""

    def close(self) -> None:
        """Stop listening."""


class TcpEndpoint:
    """A TCP port of one host. Port 0 takes a free port, which stays the same from then on.

    `address` is the bound address; the first one if the name `host` has several.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self._host = host
        self._listeners: list[trio.SocketListener] = []

    async def open(self) -> list[trio.SocketListener]:
        """Bind and listen.

        Raises:
            CannotListen: the port is taken, the address is not ours, …
        """
        _, port = self.address
        try:
            self._listeners = await trio.open_tcp_listeners(port, host=self._host)
        except OSError as error:
            raise CannotListen(_why(self._host, port, error)) from None
        host, port = self._listeners[0].socket.getsockname()[:2]
        self.address = (host, port)
        return self._listeners

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.socket.close()


class UnixEndpoint:
    """A socket file. Its mode decides who may connect: whoever may write to it."""

    def __init__(self, path: Path, mode: int = 0o660) -> None:
        self.address = path
        self._mode = mode
        self._listener: trio.SocketListener | None = None

    async def open(self) -> list[trio.SocketListener]:
        """Create the socket file and listen. Replaces a file that a dead daemon has left.

        Raises:
            CannotListen: another process listens there, or the directory cannot be written.
        """
        await trio.lowlevel.checkpoint()
        path = self.address
        try:
            with socket_name(path) as name:
                _remove_stale(path, name)
                self._listener = _listen(name, self._mode)
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {path}: {error.strerror or error}; see that {path.parent} is a "
                "directory that the daemon's user can write to"
            ) from None
        return [self._listener]

    def close(self) -> None:
        """Remove the socket file, then stop listening.

        In the other order, a daemon that starts in between would take the file for a dead one's.
        """
        if self._listener is None:
            return
        try:
            self.address.unlink(missing_ok=True)
        except OSError as error:  # the next daemon replaces it
            log.warning("cannot remove %s: %s", self.address, error.strerror)
        self._listener.socket.close()
        self._listener = None


@contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """Provide a name of `path` that fits into a socket address, for the length of the block.

    A path that is too long is named through a descriptor of its directory.
    """
    if len(os.fsencode(path)) <= MAX_NAME:
        yield os.fspath(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def peer_address(connected: trio.socket.SocketType) -> str:
    """Return the peer's IP address; for a unix socket its user, as `uid 1000`.

    Raises:
        OSError: the connection is gone.
    """
    if connected.family == socket.AF_UNIX:
        _process, uid = _credentials(connected)
        return f"uid {uid}"
    return str(connected.getpeername()[0])


def is_near_fd_limit(connected: trio.socket.SocketType, spare: int) -> bool:
    """Return whether a socket has one of the last `spare` descriptors, or of the last quarter.

    The smaller of the two counts. The kernel gives out the lowest free number, so a high number
    tells that many descriptors are in use, by whatever part of the process.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return connected.fileno() >= limit - min(spare, limit // 4)


def _credentials(connected: socket.socket | trio.socket.SocketType) -> tuple[int, int]:
    """Return the process ID and user ID of the peer."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, uid, _gid = _CREDENTIALS.unpack(found)
    return process, uid


def _remove_stale(path: Path, name: str) -> None:
    """Remove a socket file that nobody listens at; raises `CannotListen` for anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            raise CannotListen(f"cannot listen on {path}: a file is in the way; move it elsewhere")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # `connect` would block while the listener's queue is full
            try:
                probe.connect(name)
                holder = f"process {_credentials(probe)[0]}"
            except BlockingIOError:
                holder = "another program"
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        Path(name).unlink(missing_ok=True)
        return
    raise CannotListen(f"cannot listen on {path}: {holder} listens there; stop it first")


def _listen(name: str, mode: int) -> trio.SocketListener:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(name)
        # Nobody can connect before `listen`, so the mode is set in time. (Rejected: the umask. It
        # is the whole process's, and the store's thread creates files, too.)
        os.chmod(name, mode)
        listening.listen(socket.SOMAXCONN)
    except BaseException:
        listening.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def _why(host: str, port: int, error: OSError) -> str:
    what = {
        errno.EADDRINUSE: "the port is taken; stop the other program, or set CLARA_GATEWAY_PORT",
        errno.EADDRNOTAVAIL: "this machine has no such address; set CLARA_GATEWAY_HOST to one",
        errno.EACCES: "ports below 1024 need privileges; set CLARA_GATEWAY_PORT to a higher one",
    }
    cause = error.__cause__
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause]
    number = error.errno
    for inner in causes:
        if isinstance(inner, OSError):
            number = inner.errno
    reason = what.get(number or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port}: {reason}"
