"""HTTP responses to connections that do not ask for a WebSocket. No I/O."""

import re
from http import HTTPStatus
from typing import Final

_WEBSOCKET: Final = re.compile(rb"^upgrade:[ \t]*websocket[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_HTTP: Final = re.compile(rb"[A-Z]+ [^ \r\n]+ HTTP/1\.[01]\r?\n")
_WRONG_HERE: Final = (
    "This port speaks WebSocket: connect an adapter to it, as docs/protocol.md says. A proxy in "
    "between has to pass on the headers Upgrade and Connection."
)


def is_plain(head: bytes) -> bool:
    """Return whether `head` is an HTTP request that does not ask for a WebSocket."""
    return _HTTP.match(head) is not None and _WEBSOCKET.search(head) is None


def upgrade_required() -> bytes:
    """Return the response to such a request."""
    return _answer(
        HTTPStatus.UPGRADE_REQUIRED, _WRONG_HERE, "Upgrade: websocket", "Connection: Upgrade, close"
    )


def bad_request(why: str) -> bytes:
    """Return the response to a connection with a wrong PROXY header."""
    return _answer(HTTPStatus.BAD_REQUEST, why, "Connection: close")


def _answer(status: HTTPStatus, text: str, *headers: str) -> bytes:
    body = f"{text}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {status.phrase}",
        *headers,
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body
