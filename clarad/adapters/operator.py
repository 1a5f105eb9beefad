"""The client of the control socket: how commands reach the running daemon.

A command sends one request and waits, so it reads frames from wsproto itself, without a reader
task. (Rejected: trio-websocket. Its handshake hangs if the daemon ends during it, and failures of
its reader task are raised in a group.)
"""

import os
import pwd
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from clarad import protocol
from clarad.config import discovery
from clarad.protocol import control
from clarad.transport.listeners import socket_name

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the daemon to answer the handshake."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a close may take."""

_READ_SIZE: Final = 64 * 1024

E = TypeVar("E", bound=Event)


class OperatorError(Exception):
    """The daemon cannot be reached; the text says why and what to do, in one line."""


class NoDaemon(OperatorError):  # noqa: N818 - it is an answer, not a fault
    """No daemon seems to run with this state directory."""


class OperatorClient:
    """A connection to the daemon, for one request at a time; made by `open_operator`."""

    def __init__(self, stream: trio.SocketStream, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._websocket = WSConnection(ConnectionType.CLIENT)

    async def ask(
        self,
        request: control.Request,
        on_started: Callable[[str], None] = lambda _run: None,
        on_output: Callable[[control.Output], None] = lambda _output: None,
    ) -> control.Done:
        """Send a request and wait for the answer.

        `on_started` is called with the ID of the run that the request starts, `on_output` with what
        a command writes. Cancelling makes the connection unusable; a started run goes on.

        Raises:
            control.Refused: the daemon refuses the request.
            OperatorError: the connection is lost, or the daemon does not know the request.
        """
        try:
            text = protocol.encode(request).decode()
        except UnicodeEncodeError:  # Python keeps such bytes of a command line as lone surrogates
            raise OperatorError("what is asked for is not UTF-8; write it in UTF-8") from None
        await self._send(TextMessage(text))
        while True:
            match await self._receive():
                case control.Started(run=run):
                    on_started(run)
                case control.Output() as output:
                    on_output(output)
                case control.Done() as done:
                    return done
                case control.Refusal(problems=problems):
                    raise control.Refused(problems)
                case protocol.Error(message=message):
                    raise OperatorError(f"the daemon at {self._path} refuses: {message}")

    async def _receive(self) -> control.Answer:
        text = ""
        while True:
            part = await self._next(TextMessage)
            text += part.data
            if part.message_finished:
                try:
                    return control.decode_answer(text)
                except msgspec.MsgspecError as error:
                    raise self._not_this_protocol(error) from None

    async def shake_hands(self) -> None:
        """Make the WebSocket handshake, before anything else."""
        with trio.move_on_after(CONNECT_TIMEOUT):
            await self._send(Request(host="clarad", target="/"))
            await self._next(AcceptConnection)
            return
        raise OperatorError(f"the daemon at {self._path} does not answer; its log may say why")

    async def close(self) -> None:
        """Close, and wait up to `CLOSE_TIMEOUT` for the answer."""
        with suppress(OperatorError), trio.move_on_after(CLOSE_TIMEOUT):
            await self._send(CloseConnection(code=1000))
            while True:
                await self._next(TextMessage)

    async def _next(self, kind: type[E]) -> E:
        """Return the next event of this kind.

        Raises:
            OperatorError: the daemon refuses, closes or is gone.
        """
        while True:
            try:
                for event in self._websocket.events():
                    match event:
                        case kind():
                            return event
                        case Ping():
                            await self._send(event.response())
                        case CloseConnection() | RejectConnection():
                            raise self._closed(event)
                self._websocket.receive_data(await self._read())
            except ProtocolError as error:
                raise self._not_this_protocol(error) from None

    async def _read(self) -> bytes:
        data = b""
        with suppress(trio.BrokenResourceError):
            data = bytes(await self._stream.receive_some(_READ_SIZE))
        if not data:
            raise OperatorError(f"the connection to the daemon at {self._path} was lost")
        return data

    async def _send(self, event: Event) -> None:
        with suppress(
            trio.BrokenResourceError
        ):  # what the daemon sent before it closed can still be read
            await self._stream.send_all(self._websocket.send(event))

    def _closed(self, event: CloseConnection | RejectConnection) -> OperatorError:
        if isinstance(event, CloseConnection):
            return OperatorError(
                f"the daemon at {self._path} closed the connection: {event.reason or event.code}"
            )
        return OperatorError(f"the daemon at {self._path} refuses: {event.status_code}")

    def _not_this_protocol(self, error: Exception) -> OperatorError:
        return OperatorError(f"{self._path} does not speak this protocol: {error}")


@asynccontextmanager
async def open_operator(
    state_dir: Path, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[OperatorClient]:
    """Connect to the daemon of this state directory; close at the end of the block.

    Raises:
        NoDaemon: no process listens at its control socket.
        OperatorError: it cannot be reached, or does not answer.
    """
    stream, path = await _connect(state_dir, environ)
    async with stream:
        client = OperatorClient(stream, path)
        await client.shake_hands()
        yield client
        await client.close()


async def _connect(state_dir: Path, environ: Mapping[str, str]) -> tuple[trio.SocketStream, Path]:
    denied: list[Path] = []
    for path in discovery.control_paths(state_dir, environ):
        try:
            with socket_name(path) as name:
                return await trio.open_unix_socket(name), path
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            continue
        except PermissionError:
            denied.append(path)
        except OSError as error:
            raise OperatorError(f"cannot connect to {path}: {error.strerror or error}") from None
    if denied:
        raise OperatorError(
            f"{denied[0]} belongs to {_owner(denied[0])}; run this as that user or with sudo"
        )
    raise NoDaemon(
        f"no daemon runs with the state directory {state_dir}; start it with `clarad run`"
    )


def _owner(path: Path) -> str:
    """Return the owner of the file, or of the nearest parent directory that is readable."""
    for place in (path, *path.parents):
        with suppress(OSError):
            uid = place.stat().st_uid
            break
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
