"""Against a real server on loopback that answers whatever a test tells it to."""

import base64
import gc
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Final

import httpcore
import httpx
import pytest
import standardwebhooks
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from clarad.automation.hooks.webhook import (
    MAX_BODY,
    MAX_RETRY_AFTER,
    Posted,
    UnsendableError,
    make_client,
    post,
    sign,
)
from clarad.version import VERSION
from tests.receiver import (
    PATIENCE,
    Answer,
    answers,
    forget_proxies,
    listening,
    receiver,
    says,
    verify,
)

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET: Final = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


async def endless(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 10_000)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.AsyncClient]:
    """One for all tests: none leaves anything in it."""
    with pytest.MonkeyPatch.context() as environment:
        forget_proxies(environment)
        yield make_client()


async def deliver(client: httpx.AsyncClient, url: str, **changed: Any) -> Posted:
    given: dict[str, Any] = {
        "headers": {},
        "secret": SECRET,
        "message_id": "event-1",
        "body": b"{}",
        "now": datetime.now(UTC),
    }
    with trio.fail_after(PATIENCE):
        return await post(client, url=url, **given | changed)


async def deliver_to(client: httpx.AsyncClient, answer: Answer, **changed: Any) -> Posted:
    """Deliver to a server that answers so."""
    async with receiver(answer) as server:
        return await deliver(client, server.url, **changed)


# --- the signature -------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_published_example() -> None:
    signature = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(
    key=st.binary(min_size=1),
    message_id=st.text(min_size=1),
    body=st.text().map(str.encode),
    is_padded=st.booleans(),
)
def test_what_is_signed_is_verified_by_the_library_of_the_specification(
    key: bytes, message_id: str, body: bytes, is_padded: bool
) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    now = int(time.time())
    signature = sign(secret if is_padded else secret.rstrip("="), message_id, now, body)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature,
    }
    standardwebhooks.Webhook(secret).verify(body, headers, json_parse=False)


def test_several_secrets_make_a_signature_each_in_their_order() -> None:
    both = sign(f"{SECRET} {OLD_SECRET}", "event-1", 1, b"{}")
    assert both.split() == [
        sign(SECRET, "event-1", 1, b"{}"),
        sign(OLD_SECRET, "event-1", 1, b"{}"),
    ]


NO_SECRETS = [
    "",
    " ",
    "whsec_",
    "whsec_====",
    "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS-",
    "whsec_MfKQ9",
    "whsec_ünïcode",
    "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    f"{SECRET} whsec_",
]


@pytest.mark.parametrize("secret", NO_SECRETS)
async def test_what_is_no_secret_signs_nothing_and_is_not_shown(
    client: httpx.AsyncClient, secret: str
) -> None:
    async with receiver(answers(200)) as server:
        delivery = await deliver(client, server.url, secret=secret)
    reason = "the hook's secret is not whsec_ followed by base64: correct it"
    assert delivery == Posted(reason=reason)
    assert server.requests == []
    with pytest.raises(UnsendableError, match=reason):
        sign(secret, "event-1", 1, b"{}")


# --- what is sent --------------------------------------------------------------------------------


async def test_a_webhook_is_a_signed_post_of_json(client: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    async with receiver(answers(200)) as server:
        delivery = await deliver(client, server.url, now=now, body=b'{"type":"tool:error"}')
    assert delivery == Posted(status=200)
    (request,) = server.requests
    verify(SECRET, request)
    assert request.target == "/hook"
    assert request.body == b'{"type":"tool:error"}'
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"clarad/{VERSION}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["webhook-id"] == "event-1"
    assert request.headers["webhook-timestamp"] == str(int(now.timestamp()))


async def test_the_new_secret_and_the_old_one_both_verify(client: httpx.AsyncClient) -> None:
    async with receiver(answers(200)) as server:
        await deliver(client, server.url, secret=f"{SECRET} {OLD_SECRET}")
    verify(SECRET, server.requests[0])
    verify(OLD_SECRET, server.requests[0])


async def test_without_a_secret_there_is_no_signature(client: httpx.AsyncClient) -> None:
    async with receiver(answers(200)) as server:
        await deliver(client, server.url, secret=None, headers={"Webhook-Signature": "v1,mine"})
    (request,) = server.requests
    assert "webhook-signature" not in request.headers
    assert request.headers["webhook-id"] == "event-1"
    assert "webhook-timestamp" in request.headers


async def test_headers_of_the_hook_are_added_or_take_the_place_of_ours(
    client: httpx.AsyncClient,
) -> None:
    headers = {"X-Source": "clarad", "Content-Type": "text/plain", "USER-AGENT": "mine"}
    async with receiver(answers(200)) as server:
        await deliver(client, server.url, headers=headers)
    (request,) = server.requests
    assert request.headers["x-source"] == "clarad"
    assert request.headers["content-type"] == "text/plain"
    assert request.headers["user-agent"] == "mine"


async def test_headers_of_the_hook_do_not_change_how_it_is_signed_and_framed(
    client: httpx.AsyncClient,
) -> None:
    headers = {
        "Webhook-Id": "mine",
        "webhook-timestamp": "1",
        "WEBHOOK-SIGNATURE": "v1,mine",
        "Content-Length": "1",
        "Transfer-Encoding": "chunked",
        "Connection": "keep-alive",
    }
    async with receiver(answers(200)) as server:
        await deliver(client, server.url, headers=headers, body=b"whole")
        await server.deserted()
    (request,) = server.requests
    verify(SECRET, request)
    assert request.headers["webhook-id"] == "event-1"
    assert request.body == b"whole"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Token": "hush\r\nX-Admin: yes"},
        {"X-Token": "hush\nX-Admin: yes"},
        {"X-Token": "hush\r\n\r\nGET /admin HTTP/1.1"},
        {"X-Token": "hush\0"},
        {"X-Token\r\nX-Admin": "hush"},
        {"X-Token: hush\r\nX-Admin": "yes"},
        {"X Token": "hush"},
        {"": "hush"},
        {"X-Tökén": "hush"},
        {"X-Token": "hush \ud800"},
    ],
)
async def test_a_header_that_would_break_out_of_its_line_is_not_sent(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    async with receiver(answers(200)) as server:
        delivery = await deliver(client, server.url, headers=headers)
        await server.deserted()
    assert delivery == Posted(
        reason="the hook's url, or one of its headers, cannot be sent as HTTP: correct it"
    )
    assert server.requests == []


async def test_unicode_arrives_as_utf_8(client: httpx.AsyncClient) -> None:
    body = '{"text":"Grüße, 世界 🌍"}'.encode()
    async with receiver(answers(200)) as server:
        url = f"{server.url}/grüße?an=wélt"
        delivery = await deliver(client, url, headers={"X-Name": "Zoë"}, body=body)
    assert delivery.status == 200
    (request,) = server.requests
    verify(SECRET, request)
    assert request.headers["x-name"] == "Zoë"
    assert request.target == "/hook/gr%C3%BC%C3%9Fe?an=w%C3%A9lt"


@pytest.mark.parametrize("size", [0, 10_000_000])
async def test_a_body_of_any_size_arrives_whole(client: httpx.AsyncClient, size: int) -> None:
    async with receiver(answers(200)) as server:
        await deliver(client, server.url, body=b"x" * size)
    assert server.requests[0].body == b"x" * size
    verify(SECRET, server.requests[0])


async def test_user_and_password_in_the_url_are_sent_as_basic_authentication(
    client: httpx.AsyncClient,
) -> None:
    async with receiver(answers(200)) as server:
        await deliver(client, server.url.replace("http://", "http://clara:hush@"))
    credentials = base64.b64encode(b"clara:hush").decode()
    assert server.requests[0].headers["authorization"] == f"Basic {credentials}"


async def test_a_cookie_is_not_kept(client: httpx.AsyncClient) -> None:
    async with receiver(answers(200, "Set-Cookie: session=hush; Path=/")) as server:
        await deliver(client, server.url)
        await deliver(client, server.url)
    assert "cookie" not in server.requests[1].headers


# --- what is answered ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204, 299])
async def test_any_2xx_is_delivered(client: httpx.AsyncClient, status: int) -> None:
    delivery = await deliver_to(client, answers(status, "Retry-After: 5"))
    assert delivery == Posted(status=status)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "the server answered 400 Bad Request"),
        (401, "the server answered 401 Unauthorized"),
        (404, "the server answered 404 Not Found"),
        (410, "the server answered 410 Gone"),
        (499, "the server answered 499"),
        (999, "the server answered 999"),
    ],
)
async def test_a_refusal_is_not_worth_another_attempt(
    client: httpx.AsyncClient, status: int, reason: str
) -> None:
    delivery = await deliver_to(client, answers(status, "Retry-After: 5", body=b"go away"))
    assert delivery == Posted(status=status, reason=reason, body=b"go away")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (408, "the server answered 408 Request Timeout"),
        (429, "the server answered 429 Too Many Requests"),
        (500, "the server answered 500 Internal Server Error"),
        (503, "the server answered 503 Service Unavailable"),
        (599, "the server answered 599"),
    ],
)
async def test_a_trouble_that_passes_is_worth_another_attempt(
    client: httpx.AsyncClient, status: int, reason: str
) -> None:
    delivery = await deliver_to(client, answers(status, body=b"overloaded"))
    assert delivery == Posted(status=status, reason=reason, body=b"overloaded", worth_retrying=True)


NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("3601", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("Thu, 01 Jan 2026 12:02:00 GMT", 120),
        ("Thursday, 01-Jan-26 12:02:00 GMT", 120),
        ("Thu Jan  1 12:02:00 2026", 120),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("Thu, 99 Jan 2026 12:02:00 GMT", None),
        ("", None),
    ],
)
async def test_retry_after_is_a_number_of_seconds_or_a_date(
    client: httpx.AsyncClient, value: str, seconds: float | None
) -> None:
    delivery = await deliver_to(client, answers(503, f"Retry-After: {value}"), now=NOON)
    assert delivery.retry_after == seconds


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://other.example/new", "https://other.example/new"),
        (
            "https://clara:hush@other.example:8443/new?token=hush#hush",
            "https://other.example:8443/new",
        ),
        ("https://other.example/hook/T0/login", "https://other.example/…/…/login"),
        ("https://other.example/a%0Ab", "https://other.example/a%0Ab"),
        ("https://other.example", "https://other.example/"),
        (f"https://other.example/{'x' * 5000}", f"https://other.example/{'x' * 178}"),
        ("http://hush:hush/", "what is not an address"),
        ("http:////[hush", "what is not an address"),
        ("data:text/html,hush", "what is not an address"),
    ],
)
async def test_a_redirect_is_not_followed_but_said(
    client: httpx.AsyncClient, location: str, shown: str
) -> None:
    async with receiver(answers(301, f"Location: {location}")) as server:
        delivery = await deliver(client, f"{server.url}/T0")
    assert delivery == Posted(
        status=301,
        reason=f"the server answered 301 Moved Permanently, pointing to {shown}; "
        "redirects are not followed: correct the hook's url",
    )


async def test_a_redirect_to_the_same_server_does_not_show_the_path_of_the_hook(
    client: httpx.AsyncClient,
) -> None:
    async with receiver(answers(308, "Location: /hook/T0K3N/")) as server:
        delivery = await deliver(client, f"{server.url}/T0K3N")
    assert f"pointing to {server.url.removesuffix('/hook')}/…/…/;" in delivery.reason
    assert len(server.requests) == 1


async def test_a_redirect_that_says_not_where_is_a_refusal(client: httpx.AsyncClient) -> None:
    delivery = await deliver_to(client, answers(302))
    assert delivery == Posted(status=302, reason="the server answered 302 Found")


async def test_the_body_of_the_answer_is_kept_as_it_came(client: httpx.AsyncClient) -> None:
    answer = answers(200, "Content-Encoding: gzip", body=b"not gzip")
    assert (await deliver_to(client, answer)).body == b"not gzip"


async def test_a_body_without_an_end_is_cut_and_the_connection_dropped(
    client: httpx.AsyncClient,
) -> None:
    async with receiver(endless) as server:
        delivery = await deliver(client, server.url)
        await server.deserted()
    assert delivery == Posted(status=200, body=b"x" * MAX_BODY)


@pytest.mark.parametrize("size", [MAX_BODY - 1, MAX_BODY, MAX_BODY + 1])
async def test_a_body_is_kept_up_to_its_maximum(client: httpx.AsyncClient, size: int) -> None:
    delivery = await deliver_to(client, answers(200, body=b"x" * size))
    assert delivery.body == b"x" * min(size, MAX_BODY)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Posted(status=200, body=b"the beg")),
        (
            500,
            Posted(
                status=500,
                reason="the server answered 500 Internal Server Error",
                body=b"the beg",
                worth_retrying=True,
            ),
        ),
    ],
)
async def test_a_body_that_breaks_off_does_not_change_what_the_status_says(
    client: httpx.AsyncClient, status: int, expected: Posted
) -> None:
    answer = says(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 999\r\n\r\nthe beg".encode())
    assert await deliver_to(client, answer) == expected


@given(
    status=st.integers(0, 9999),
    location=st.binary(max_size=50),
    retry_after=st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)
@example(301, b"http://[::1", "Mon, 32 Jan 2026 25:61:61 +9999")
@example(301, b"//\xff/%ff", "Mon, 01 Jan 0000 00:00:00 GMT")
def test_whatever_a_server_answers_the_reason_is_one_line(
    client: httpx.AsyncClient, status: int, location: bytes, retry_after: str
) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 %d \xff\r\nLocation: %s\r\n" % (status, location)
        raw = head + f"Retry-After: {retry_after}\r\n\r\n".encode()
        delivery = await deliver_to(client, says(raw))
        assert delivery.reason.isprintable()
        assert bool(delivery.reason) == (delivery.status is None or delivery.status // 100 != 2)
        assert delivery.retry_after is None or 0 <= delivery.retry_after <= MAX_RETRY_AFTER

    trio.run(main)


@given(minutes=st.integers(-(10**6), 10**6))
def test_a_date_of_retry_after_is_never_further_off_than_the_maximum(
    client: httpx.AsyncClient, minutes: int
) -> None:
    async def main() -> None:
        date = format_datetime(NOON + timedelta(minutes=minutes), usegmt=True)
        delivery = await deliver_to(client, answers(429, f"Retry-After: {date}"), now=NOON)
        assert delivery.retry_after == min(max(minutes * 60, 0), MAX_RETRY_AFTER)

    trio.run(main)


# --- when nothing is answered --------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_worth_another_attempt(
    client: httpx.AsyncClient,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://clara:hush@127.0.0.1:{port}/hush?token=hush"
    assert await deliver(client, url, headers={"X-Token": "hush"}) == Posted(
        reason=f"cannot connect to http://127.0.0.1:{port}: Connection refused",
        worth_retrying=True,
    )


async def test_every_address_of_a_name_is_tried(client: httpx.AsyncClient) -> None:
    async with receiver(answers(200)) as server:
        delivery = await deliver(client, server.url.replace("127.0.0.1", "localhost"))
    assert delivery.status == 200


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH hush\r\n\r\n"])
async def test_a_server_without_an_answer_is_worth_another_attempt(
    client: httpx.AsyncClient, raw: bytes
) -> None:
    async with receiver(says(raw)) as server:
        delivery = await deliver(client, f"{server.url}?token=hush")
    origin = server.url.removesuffix("/hook")
    assert delivery == Posted(
        reason=f"{origin} hung up without an answer, or does not speak HTTP", worth_retrying=True
    )


async def test_a_reset_before_the_answer_is_worth_another_attempt(
    client: httpx.AsyncClient,
) -> None:
    async def reset(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    async with receiver(reset) as server:
        delivery = await deliver(client, server.url)
    origin = server.url.removesuffix("/hook")
    assert delivery == Posted(
        reason=f"the connection to {origin} broke: Connection reset by peer", worth_retrying=True
    )


async def test_headers_without_an_end_are_given_up(client: httpx.AsyncClient) -> None:
    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"X-More: of the same\r\n" * 1000)

    async with receiver(talk) as server:
        delivery = await deliver(client, server.url)
        await server.deserted()
    assert delivery.status is None
    assert delivery.worth_retrying


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/hush",
        "ftp://example.org/hush",
        "http:///hush",
        "http://127.0.0.1:hush/",
        "http://127.0.0.1/\nhush",
        f"http://{'hush' * 16}.example/",
        "http://127.0.0.1/\ud800hush",
    ],
)
async def test_what_is_no_url_is_not_worth_another_attempt(
    client: httpx.AsyncClient, url: str
) -> None:
    assert await deliver(client, url) == Posted(
        reason="the hook's url, or one of its headers, cannot be sent as HTTP: correct it"
    )


# --- TLS and proxies -----------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that nobody vouches for, and its key."""
    path = tmp_path / "localhost.pem"
    path.write_text(LOCALHOST_PEM)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    client: httpx.AsyncClient, tls: ssl.SSLContext
) -> None:
    async with receiver(answers(200), tls) as server:
        delivery = await deliver(client, server.url)
        await server.deserted()
    origin = server.url.removesuffix("/hook")
    assert delivery.reason.startswith(
        f"cannot connect to {origin}: its certificate is not trusted (self"
    )
    assert delivery.worth_retrying
    assert server.requests == []


async def test_authorities_can_be_named_in_the_environment(
    certificate: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_proxies(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with receiver(answers(200, body=b"thanks"), tls) as server, make_client() as client:
        delivery = await deliver(client, server.url)
        elsewhere = await deliver(client, server.url.replace("localhost", "127.1"))
    assert delivery == Posted(status=200, body=b"thanks")
    assert "certificate is not valid for '127.1'" in elsewhere.reason


async def test_https_to_a_server_without_tls_is_said(client: httpx.AsyncClient) -> None:
    async def answer_in_clear(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(answer_in_clear) as port:
        origin = f"https://127.0.0.1:{port}"
        delivery = await deliver(client, f"{origin}/hush")
    assert delivery.reason.startswith(
        f"cannot connect to {origin}: it does not speak TLS as it should ("
    )
    assert delivery.worth_retrying


async def test_a_proxy_is_used_if_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_proxies(monkeypatch)
    async with receiver(answers(200)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/hook"))
        async with make_client() as client:
            delivery = await deliver(client, "http://hooks.example/hook")
            await proxy.deserted()
    assert delivery.status == 200
    assert proxy.requests[0].target == "http://hooks.example/hook"


async def test_a_proxy_that_refuses_is_worth_another_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_proxies(monkeypatch)
    async with receiver(answers(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/hook"))
        async with make_client() as client:
            delivery = await deliver(client, "https://hooks.example/hook")
            await proxy.deserted()
    assert delivery == Posted(
        reason="the proxy that the environment names does not lead to https://hooks.example",
        worth_retrying=True,
    )


@pytest.mark.parametrize("address", ["gopher://u:hush@proxy", "http://hush:x", "socks5://u:hush@p"])
def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(UnsendableError) as refused:
        make_client()
    assert str(refused.value) == (
        "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: "
        "write an address such as http://proxy:3128"
    )


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_read_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(UnsendableError, match="SSL_CERT_FILE"):
        make_client()


# --- the end of it -------------------------------------------------------------------------------


async def test_the_connection_ends_with_the_delivery(client: httpx.AsyncClient) -> None:
    async def answer_and_wait(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with receiver(answer_and_wait) as server:
        assert (await deliver(client, server.url)).status == 200
        await server.deserted()


async def test_many_are_delivered_at_once(client: httpx.AsyncClient) -> None:
    async def answer_when_all_are_there(stream: trio.abc.Stream) -> None:
        if len(server.requests) == 200:
            all_there.set()
        await all_there.wait()
        await answers(200)(stream)

    all_there = trio.Event()
    async with receiver(answer_when_all_are_there) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(deliver, client, server.url)
        await server.deserted()
    assert len(server.requests) == 200


def test_the_deadline_is_the_callers() -> None:
    assert make_client().timeout == httpx.Timeout(None)


async def test_a_cancel_ends_a_connection_whose_server_is_silent(
    client: httpx.AsyncClient,
) -> None:
    async def cancel_and_be_silent(_: trio.abc.Stream) -> None:
        scope.cancel("the test wants it")

    async with receiver(cancel_and_be_silent) as server:
        with trio.CancelScope() as scope:
            await deliver(client, server.url)
        assert scope.cancelled_caught
        await server.deserted()


async def test_a_cancel_ends_an_answer_that_drips(client: httpx.AsyncClient) -> None:
    async def drip(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\ndrip")
        await wait_all_tasks_blocked()
        scope.cancel("the test wants it")

    async with receiver(drip) as server:
        with trio.CancelScope() as scope:
            await deliver(client, server.url)
        assert scope.cancelled_caught
        await server.deserted()


async def received_of_a_cancelled(client: httpx.AsyncClient, scheme: str, body: bytes) -> int:
    """Cancel when the first bytes have come; return how many there are until the end of it."""
    received = 0
    hung_up = trio.Event()

    async def take(stream: trio.SocketStream) -> None:
        nonlocal received
        while data := await stream.receive_some():
            received += len(data)
            scope.cancel("the test wants it")
        hung_up.set()

    async with listening(take) as port:
        with trio.CancelScope() as scope:
            await deliver(client, f"{scheme}://127.0.0.1:{port}/", body=body)
        assert scope.cancelled_caught
        with trio.fail_after(PATIENCE):
            await hung_up.wait()
    return received


async def test_a_cancel_ends_a_request_that_is_half_sent(client: httpx.AsyncClient) -> None:
    body = bytes(50_000_000)
    assert await received_of_a_cancelled(client, "http", body) < len(body)


async def test_a_cancel_ends_a_tls_handshake(client: httpx.AsyncClient) -> None:
    assert await received_of_a_cancelled(client, "https", b"{}") > 0


@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_cancel_at_any_moment_leaves_nothing(
    certificate: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, is_secure: bool
) -> None:
    forget_proxies(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    answer = answers(200, body=b"thanks")
    async with receiver(answer, tls if is_secure else None) as server, make_client() as client:
        before = left_open()
        for steps in [*range(40)] * 5:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver, client, server.url)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel("the test wants it")
            await server.deserted()
        assert left_open() == before
        assert (await deliver(client, server.url)).status == 200


def left_open() -> tuple[int, int]:
    """Return how many sockets there are, and how many connections httpcore knows of."""
    gc.collect()
    connections = [x for x in gc.get_objects() if isinstance(x, httpcore.AsyncHTTPConnection)]
    return open_sockets(), len(connections)


def open_sockets() -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return found


# Self-signed, for localhost and 127.0.0.1, until 2126; it is good for nothing else.
LOCALHOST_PEM: Final = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgLwAK5s6z3KhxK8xE
9OgdwivPrGTmq7an6Kgckk/s35uhRANCAAQHBgZsLvrj1B5NMUgmAnDjfVeOKGt+
ZwxkhqAOjeUxPcu5SlHJAQy3kwmDC3ayfBK5M+j4jVDcuYQXiqIas3ac
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBqzCCAVGgAwIBAgIUGj7eHuC+WsKK+42LpkkYS9UDVdgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzA2MzgxMloYDzIxMjYxMDMw
MDYzODEyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQHBgZsLvrj1B5NMUgmAnDjfVeOKGt+ZwxkhqAOjeUxPcu5SlHJAQy3
kwmDC3ayfBK5M+j4jVDcuYQXiqIas3aco38wfTAdBgNVHQ4EFgQUd7MOLtouj5C9
NrZi2FRYPo5PZRswHwYDVR0jBBgwFoAUd7MOLtouj5C9NrZi2FRYPo5PZRswDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwDgYDVR0P
AQH/BAQDAgKEMAoGCCqGSM49BAMCA0gAMEUCIQCRP5tOVGINBOqncEs19LBkmSFk
lKDtGjJRSfSmDpf+ygIgbhPdZO8C6+M/ES1yhdSjgdrjl3tHKq8Xa6a00x5SBVs=
-----END CERTIFICATE-----
"""
