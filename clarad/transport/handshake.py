"""The WebSocket handshake of one connection: a proxy's header, the request, authentication."""

import logging
from http import HTTPStatus

import trio
from trio_websocket import WebSocketConnection, wrap_server_stream

from clarad.config.proxies import NO_PROXIES, ForwardedError, Proxies
from clarad.systemd import catalogue
from clarad.transport.auth import Authenticator, bearer
from clarad.transport.plain_http import bad_request, is_plain, upgrade_required
from clarad.transport.proxy_protocol import ProxyHeaderError, begins_with_header, read_header
from clarad.transport.stream import ClientStream

log = logging.getLogger(__name__)


async def shake_hands(
    stream: ClientStream,
    connected: trio.socket.SocketType,
    scope: trio.CancelScope,
    nursery: trio.Nursery,
    *,
    authenticator: Authenticator,
    proxies: Proxies,
    max_first_frame: int,
) -> tuple[WebSocketConnection, str | None] | None:
    """Return the WebSocket and the credential that the request presented; `None` if refused.

    `connected` is the socket below `stream`. `nursery` gets trio-websocket's reader. `scope` has to
    be around this call: it is cancelled if the peer leaves, since trio-websocket would wait on.

    Raises:
        trio.BrokenResourceError: the connection is lost.
    """
    try:
        trusted = await _read_proxy_header(stream, connected, proxies)
    except ProxyHeaderError as error:
        about = catalogue.ADAPTER_REFUSED.about(address=stream.address)
        line = "refused a connection from %s: %s"
        # The lockout of an address was logged when it began; more of it would flood the log.
        level = logging.DEBUG if authenticator.count_failure(stream.address) else logging.WARNING
        log.log(level, line, stream.address, error, extra=about)
        await stream.send_all(bad_request(f"Refused {stream.address}: {error}."))
        return None
    # Plain HTTP and rubbish end here: they cost a read, and no WebSocket.
    head = await stream.receive_head()
    if stream.ended.is_set():
        return None
    if is_plain(head):
        await stream.send_all(upgrade_required())
        return None
    async with trio.open_nursery() as watch:
        watch.start_soon(_cancel_at_end, stream, scope)
        request = await wrap_server_stream(nursery, stream, max_message_size=max_first_frame)
        headers = {
            name.decode("latin-1").lower(): value.decode(errors="replace")
            for name, value in request.headers
        }
        rejection: tuple[int, str] | None
        try:
            stream.address = trusted.client(stream.address, request.headers)
        except ForwardedError as error:
            rejection = HTTPStatus.BAD_REQUEST, f"{error}"
        else:
            rejection = await authenticator.check_handshake(headers, stream.address)
        websocket: WebSocketConnection | None = None
        if rejection is None:
            websocket = await request.accept()
        else:
            status, text = rejection
            about = catalogue.ADAPTER_REFUSED.about(address=stream.address, status=status)
            line = "refused a handshake from %s: %d %s"
            level = logging.DEBUG if status == HTTPStatus.TOO_MANY_REQUESTS else logging.WARNING
            log.log(level, line, stream.address, status, text, extra=about)
            await request.reject(status, body=f"{text}\n".encode())
        watch.cancel_scope.cancel("the handshake is done")
    return None if websocket is None else (websocket, bearer(headers))


async def _read_proxy_header(
    stream: ClientStream, connected: trio.socket.SocketType, proxies: Proxies
) -> Proxies:
    """Take the client's address from a trusted proxy's PROXY header.

    Returns:
        The proxies whose `Forwarded` headers to believe in the request that follows.

    Raises:
        ProxyHeaderError: the header is malformed, or comes from a peer that is not trusted.
    """
    if not proxies.trusts(stream.address):
        if await begins_with_header(connected):
            raise ProxyHeaderError("it sends a PROXY header and is not in CLARA_TRUSTED_PROXIES")
        return NO_PROXIES
    header = await read_header(connected)
    if header.source is not None:
        stream.address = header.source
    elif header.size:
        # The proxy does not name the client, so its request headers may be the client's own words.
        return NO_PROXIES
    return proxies


async def _cancel_at_end(stream: ClientStream, scope: trio.CancelScope) -> None:
    await stream.ended.wait()
    scope.cancel("the peer has gone")
