"""A WebSocket connection for adapters, on wsproto and anyio: under Trio and under asyncio.

(Rejected: trio-websocket, which is Trio's alone, and a library for each, which would be two.)
"""

import ssl
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import anyio
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, ProtocolError

from clarad.adapters.errors import GatewayError

MAX_FRAME: Final = 64 * 1024 * 1024
"""Characters of one frame of the gateway; the whole text of an answer and its files are in one."""

_READ_SIZE: Final = 64 * 1024
_GONE: Final = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    OSError,  # raised by TLS if the connection is cut
)
_NO_TLS: Final = "if that port has no TLS, use ws://"
_CA_HINT: Final = (
    "; set SSL_CERT_FILE to a file with its CA's certificate, or give open_adapter a `tls` context"
)
_NAME_MISMATCHES: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


class Lost(Exception):  # noqa: N818 - it happens, and is no fault
    """The connection is lost, or cannot be made; the text says why. `code` is the close code."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class WebSocket:
    """A connection after its handshake. One task may read, and one write, at a time."""

    def __init__(self, stream: ByteStream, url: str) -> None:
        self._stream = stream
        self._url = url
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._lock = anyio.Lock()
        self._closed: CloseConnection | None = None
        self.pong = anyio.Event()
        """Set by the next pong; `ping` makes a new one."""

    async def receive(self) -> str:
        """Wait for the next text message, and answer pings meanwhile.

        Cancelling loses the parts of a fragmented message.

        Raises:
            Lost: the connection is lost, or the peer violates the protocol.
        """
        parts: list[str] = []
        size = 0
        while True:
            event = await self._next()
            if isinstance(event, TextMessage):
                parts.append(event.data)
                size += len(event.data)
                if size > MAX_FRAME:
                    raise Lost(f"{self._url} sends frames that are too large")
                if event.message_finished:
                    return "".join(parts)

    async def send(self, *texts: str) -> None:
        """Send text messages, in one write.

        Cancelling makes the connection unusable.

        Raises:
            Lost: the connection is lost.
        """
        await self._write(*map(TextMessage, texts))

    async def ping(self) -> None:
        """Send a ping; raises `Lost`."""
        self.pong = anyio.Event()
        await self._write(Ping())

    async def close(self) -> None:
        """Send a close frame; `receive` raises `Lost` when the answer comes. Raises `Lost`."""
        await self._write(CloseConnection(code=1000))

    async def shake_hands(self, url: "_Url") -> None:
        """Make the WebSocket handshake; raises `Lost`, with the reason if the gateway refuses."""
        await self._write(Request(host=url.authority, target=url.target))
        body = b""
        try:
            event = await self._next()
        except Lost as lost:  # no HTTP response came: a TLS port hangs up, or sends an alert
            hint = "; if that port has TLS, use wss://" if url.scheme == "ws" else ""
            raise Lost(f"{lost}, before it answered the handshake{hint}") from None
        while True:
            match event:
                case AcceptConnection():
                    return
                case RejectConnection(status_code=status, has_body=has_body):
                    if not has_body:
                        raise Lost(f"{self._url} refuses: {status}")
                case RejectData(data=data, body_finished=finished):
                    body += data
                    if finished:
                        reason = body.decode(errors="replace").strip()
                        raise Lost(f"{self._url} refuses: {reason}")
            event = await self._next()

    async def _next(self) -> Event:
        while True:
            try:
                for event in self._protocol.events():
                    match event:
                        case Ping():
                            await self._write(event.response())
                        case Pong():
                            self.pong.set()
                        case CloseConnection():
                            await self._answer_close(event)
                        case BytesMessage():
                            pass  # this protocol has none
                        case _:
                            return event
                self._protocol.receive_data(await self._stream.receive(_READ_SIZE))
            except ProtocolError as error:
                raise Lost(f"{self._url} does not speak this protocol: {error}") from None
            except _GONE:
                raise self._lost() from None

    async def _answer_close(self, event: CloseConnection) -> None:
        self._closed = event
        with suppress(Lost):  # the peer is gone, or has answered our close
            await self._write(event.response())
        raise self._lost()

    def _lost(self) -> Lost:
        if self._closed is None:
            return Lost(f"the connection to {self._url} was lost")
        why = self._closed.reason or self._closed.code
        return Lost(f"{self._url} closed the connection: {why}", self._closed.code)

    async def _write(self, *events: Event) -> None:
        async with self._lock:  # the reader writes pongs
            try:
                await self._stream.send(b"".join(map(self._protocol.send, events)))
            except (*_GONE, LocalProtocolError):  # the last one: either side has closed meanwhile
                raise self._lost() from None


async def connect(
    url: str, timeout: float, tls: ssl.SSLContext | None = None
) -> tuple[WebSocket, ByteStream]:
    """Connect and shake hands within `timeout` seconds; the caller closes the stream.

    `tls` says which certificates to trust for a `wss://` URL, if not those of the system.

    Raises:
        GatewayError: the URL is malformed.
        Lost: nobody answers there, its certificate is not trusted, or the gateway refuses.
    """
    parsed = _parse(url)
    stream: ByteStream | None = None
    try:
        with anyio.fail_after(timeout):
            stream = await _open(parsed)
            if parsed.scheme == "wss":
                stream = await _start_tls(stream, parsed.host, url, tls)
            websocket = WebSocket(stream, url)
            await websocket.shake_hands(parsed)
    except BaseException as error:
        if stream is not None:
            await anyio.aclose_forcefully(stream)
        if isinstance(error, TimeoutError):
            # A server without TLS may wait for the rest of what it takes for an HTTP request.
            is_tls_pending = parsed.scheme == "wss" and isinstance(stream, SocketStream)
            hint = _NO_TLS if is_tls_pending else "is the daemon running?"
            raise Lost(f"nobody answers at {url}; {hint} (not in time)") from None
        if isinstance(error, OSError):
            raise Lost(f"nobody answers at {url}; is the daemon running? ({error})") from None
        raise
    return websocket, stream


class _Url(NamedTuple):
    """A URL in parts; `host` is the path of the socket file if the scheme is `ws+unix`."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        return "localhost" if self.scheme == "ws+unix" else f"{self.host}:{self.port}"


async def _open(url: _Url) -> SocketStream:
    if url.scheme == "ws+unix":
        return await anyio.connect_unix(url.host)
    return await anyio.connect_tcp(url.host, url.port)


async def _start_tls(
    stream: ByteStream, host: str, url: str, tls: ssl.SSLContext | None
) -> ByteStream:
    context = tls or ssl.create_default_context()
    try:
        return await TLSStream.wrap(
            stream, hostname=host, ssl_context=context, standard_compatible=False
        )
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.rstrip(".")
        # A CA does not help if the name is wrong, and SSL_CERT_FILE is for the default context.
        hint = "" if tls or error.verify_code in _NAME_MISMATCHES else _CA_HINT
        raise Lost(f"the certificate of {url} is not trusted: {why}{hint}") from None
    except _GONE as error:
        why = getattr(error, "reason", None) or "it closed the connection"
        raise Lost(f"the TLS handshake with {url} failed; {_NO_TLS} ({why})") from None


def _parse(url: str) -> _Url:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise GatewayError(f"{url!r} is not the address of a gateway: {error}") from None
    if parts.scheme == "ws+unix" and not parts.netloc and parts.path:
        return _Url(parts.scheme, unquote(parts.path), 0, "/")
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise GatewayError(
            f"{url!r} is not the address of a gateway: it is ws:// or wss://, a host and a port, "
            "or ws+unix: and the path of a socket file"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    default = 443 if parts.scheme == "wss" else 80
    return _Url(parts.scheme, parts.hostname, port or default, target)
