"""Delivers one webhook: a POST, signed as the Standard Webhooks specification says.

`post` makes one attempt, on a connection of its own that is closed whatever becomes of it. The
deadline is a cancel scope of the caller's, and so are further attempts. Rejected: keeping
connections. httpx looks at idle ones only when the next request comes, so they would lie half
closed for hours, and a POST on one that the server is just closing fails for nobody's fault.

The specification: https://www.standardwebhooks.com, version 1.0.0.
"""

import base64
import hashlib
import hmac
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import quote

import httpx
import trio
from msgspec import Struct

from clarad.version import VERSION

MAX_BODY: Final = 64 * 1024
"""Bytes kept of an answer's body: the first ones. The rest is not read."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds that a server can ask for at most."""

RESERVED: Final = frozenset(
    {
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "content-length",
        "transfer-encoding",
        "connection",
    }
)
"""Names of headers that a hook cannot set, in lower case: they are part of how it is sent."""

_PREFIX: Final = "whsec_"
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_SHOWN_OF_LOCATION: Final = 200  # characters


class Posted(Struct, frozen=True, kw_only=True):
    """What became of one attempt.

    Attributes:
        status: The HTTP status; `None` if none came.
        reason: One sentence for people, without any secret; empty if the webhook was delivered.
        body: The beginning of the answer's body as it came, at most `MAX_BODY` bytes.
        worth_retrying: Whether the same might succeed later.
        retry_after: Seconds that the server wants to be left alone, if it said so.
    """

    status: int | None = None
    reason: str = ""
    body: bytes = b""
    worth_retrying: bool = False
    retry_after: float | None = None


class UnsendableError(Exception):
    """No webhook can be sent the way things are set up; the text is one sentence, no secrets."""


def make_client() -> httpx.AsyncClient:
    """Return the client that `post` wants; one serves all hooks, at the same time too.

    Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), as do
    authorities for TLS: SSL_CERT_FILE or SSL_CERT_DIR, in place of those that certifi has.
    Reading the authorities takes tens of milliseconds, so this is a call for a thread.

    Raises:
        UnsendableError: what these variables name cannot be used.
    """
    try:
        return httpx.AsyncClient(
            headers={
                "user-agent": f"clarad/{VERSION}",
                "accept-encoding": "identity",  # 64 KiB could unpack to 64 MiB
                "connection": "close",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(None),
            # A request that is cancelled while it waits for a connection can take one with it
            # (encode/httpcore#1093), so none waits: the hook runner bounds what goes on at once.
            limits=httpx.Limits(max_connections=None),
            event_hooks={"response": [_set_location_aside]},
        )
    except OSError:  # an ssl.SSLError is one
        raise UnsendableError(
            "there are no certificates where SSL_CERT_FILE or SSL_CERT_DIR says: correct it"
        ) from None
    except (ImportError, ValueError, httpx.InvalidURL):  # their texts may have a password
        raise UnsendableError(
            "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: "
            "write an address such as http://proxy:3128"
        ) from None


async def post(
    client: httpx.AsyncClient,
    *,
    url: str,
    headers: Mapping[str, str],
    secret: str | None,
    message_id: str,
    body: bytes,
    now: datetime,
) -> Posted:
    """Send `body` as JSON to `url`, once, and return what became of it; raises nothing.

    Redirects are not followed. The status alone decides: an answer's body that breaks off changes
    nothing.

    Args:
        client: From `make_client`. It has no time-out: that is the caller's cancel scope.
        headers: Added to ours, and in place of ours, except those of `RESERVED`.
        secret: As `sign` wants it; without one there is no signature.
        message_id: The same for every attempt at the same message; ASCII without spaces.
        now: The time of this attempt, aware.

    Cancelling closes the connection at once.
    """
    with ExitStack() as connection:
        try:
            metadata = _metadata(secret, message_id, int(now.timestamp()), body)
            fields = {"content-type": "application/json", **_lower(headers), **metadata}
            request = client.build_request(
                "POST",
                url,
                headers=httpx.Headers(fields, encoding="utf-8"),
                content=body,
                extensions={"trace": _closed_with(connection)},
            )
            request.stream = _Body(body)
            return await _exchange(client, request, now)
        except UnsendableError as error:
            return Posted(reason=str(error))
        # hooks.yaml is checked for all this when it is read; here it has only to break nothing.
        except (
            httpx.InvalidURL,
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
            UnicodeError,
        ):
            return Posted(
                reason="the hook's url, or one of its headers, cannot be sent as HTTP: correct it"
            )
        except httpx.HTTPError as error:
            return Posted(reason=_failure(error), worth_retrying=True)


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`.

    Args:
        secret: `whsec_` and base64; several, separated by spaces, make as many signatures, so that
            the receiver can change to a new one at its leisure.
        timestamp: Of this attempt, in seconds since the epoch.

    Raises:
        UnsendableError: this is not a secret.
    """
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digests = [hmac.digest(_key(word), content, hashlib.sha256) for word in secret.split() or [""]]
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(secret: str) -> bytes:
    text = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if not key or not secret.startswith(_PREFIX):
        raise UnsendableError(f"the hook's secret is not {_PREFIX} followed by base64: correct it")
    return key


def _metadata(secret: str | None, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    metadata = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        metadata["webhook-signature"] = sign(secret, message_id, timestamp, body)
    return metadata


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {k.lower(): value for k, value in headers.items() if k.lower() not in RESERVED}


class _Body(httpx.AsyncByteStream):
    """The body of a request.

    httpx's own is a generator, and one that a cancellation leaves half way is for the garbage
    collector to end, of which Trio warns.
    """

    def __init__(self, data: bytes) -> None:
        self._parts = iter((data,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


def _closed_with(stack: ExitStack) -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    """Return a `trace` for httpcore that has the request's socket closed at the end of `stack`."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        # httpcore 1.0 forgets the socket of a TLS handshake that is cancelled. And it keeps a
        # connection in its list for good if it is cancelled in the moment after that was made; so
        # a cancellation is looked for here, at the end of that moment, where httpcore expects it.
        if event == "connection.connect_tcp.complete":
            stack.callback(info["return_value"].get_extra_info("socket").close)
        if event.startswith("connection."):
            await trio.lowlevel.checkpoint_if_cancelled()

    return trace


async def _exchange(client: httpx.AsyncClient, request: httpx.Request, now: datetime) -> Posted:
    async with aclosing(await client.send(request, stream=True)) as response:
        body = await _beginning(response)
    if response.is_success:
        return Posted(status=response.status_code, body=body)
    passing = response.is_server_error or response.status_code in _PASSING
    return Posted(
        status=response.status_code,
        reason=_refusal(response),
        body=body,
        worth_retrying=passing,
        retry_after=_retry_after(response.headers.get("retry-after", ""), now) if passing else None,
    )


async def _beginning(response: httpx.Response) -> bytes:
    """Return the first `MAX_BODY` bytes of the body, or what came of it until it broke off."""
    body = bytearray()
    # Cancelled, not broken out of: that would leave five generators to the garbage collector.
    with trio.CancelScope() as reading, suppress(httpx.TransportError):
        async for part in response.aiter_raw():
            body += part
            if len(body) >= MAX_BODY:
                reading.cancel("the rest is not wanted")
    return bytes(body[:MAX_BODY])


async def _set_location_aside(response: httpx.Response) -> None:
    """Hide where a redirect points: httpx raises if it is no URL, even if it does not follow."""
    response.extensions["location"] = response.headers.pop("location", None)


def _retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks for: it has a number, or a date."""
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _refusal(response: httpx.Response) -> str:
    # Not the server's phrase, which may be anything.
    status = response.status_code
    phrase = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
    answered = f"the server answered {status}{phrase}"
    location = response.extensions["location"]
    if not response.is_redirect or location is None:
        return answered
    where = _shown(location, response.request.url)
    return f"{answered}, pointing to {where}; redirects are not followed: correct the hook's url"


def _shown(location: str, url: httpx.URL) -> str:
    """Return `location` without what may be secret: user, query, and what it has of our path."""
    try:
        target = url.join(location)
    except (httpx.InvalidURL, ValueError):
        target = httpx.URL()
    if not target.host:
        return "what is not an address"
    ours = set(url.path.split("/")) - {""}
    path = "/".join("…" if part in ours else quote(part) for part in target.path.split("/"))
    return f"{_origin(target)}{path}"[:_SHOWN_OF_LOCATION]


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _failure(error: httpx.HTTPError) -> str:
    # Never httpx's text: it is empty for TLS, and may have pieces of what the server sent.
    server = _origin(error.request.url)
    match error:
        case httpx.ProxyError():
            return f"the proxy that the environment names does not lead to {server}"
        case httpx.ConnectError():
            return f"cannot connect to {server}: {_in_words(error)}"
        case httpx.RemoteProtocolError():
            return f"{server} hung up without an answer, or does not speak HTTP"
        case _:
            return f"the connection to {server} broke: {_in_words(error)}"


def _in_words(error: BaseException) -> str:
    """Return what the system or OpenSSL has to say about an error."""
    below: BaseException | None = error
    while below is not None:
        match below:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted ({below.verify_message.rstrip('.')})"
            case ssl.SSLError(reason=str(reason)):
                return f"it does not speak TLS as it should ({reason.replace('_', ' ').lower()})"
            case OSError(errno=int(number), strerror=str(words)):
                # Trio puts the address before the words; name resolution has numbers of its own.
                return os.strerror(number) if number > 0 else words
            case ExceptionGroup(exceptions=[*_, below]):  # one for each address of a name
                continue
        # Not the cause alone: httpcore takes that away when it passes an error on.
        below = below.__cause__ or below.__context__
    return "nobody says why"
