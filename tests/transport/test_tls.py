"""TLS: a daemon with a certificate, and peers that do not speak TLS."""

import gc
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from clarad.config import Settings
from clarad.nurseries.gateway import HANDSHAKE_TIMEOUT
from clarad.protocol.control import Refused
from clarad.transport.tls import TlsError, client_context, server_context
from tests import certificates, peer
from tests.certificates import Certificate
from tests.conftest import Running, Start
from tests.installation import Installation
from tests.nurseries.test_connection import pass_time
from tests.peer import Peer
from tests.unprivileged import unprivileged

StartTls = Callable[[], Awaitable[Running]]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return certificates.make(tmp_path)


@pytest.fixture
async def running(start: Start, certificate: Certificate) -> Running:
    """A daemon that speaks TLS."""
    return await start(gateway_tls_cert=certificate.certificate, gateway_tls_key=certificate.key)


async def connect(running: Running, trusted: Path, node_id: str = "node-1") -> Peer:
    """Register over TLS, if the daemon shows this certificate."""
    url = f"wss://{running.host}:{running.port}"
    connection = await peer.connect(running.nursery, url, tls=client_context(trusted))
    running.peers.append(connection)
    await connection.register(node_id)
    return connection


async def shown(running: Running) -> bytes:
    """Return the certificate that the daemon shows."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stream = await trio.open_ssl_over_tcp_stream(running.host, running.port, ssl_context=context)
    with trio.fail_after(10):
        await stream.do_handshake()
    found: bytes = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    return found


async def cannot_shake_hands(running: Running, context: ssl.SSLContext) -> None:
    """See that a client with this context gets no connection."""
    stream = await trio.open_ssl_over_tcp_stream(running.host, running.port, ssl_context=context)
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    await trio.aclose_forcefully(stream)


# --- connections ---------------------------------------------------------------------------------


async def test_messages_are_answered_over_tls(running: Running, certificate: Certificate) -> None:
    connection = await connect(running, certificate.certificate)
    for text in ("hello", "x" * 1_000_000):
        await connection.ask(f"m{len(text)}", text)
        assert (await connection.outcome_of(f"m{len(text)}"))["full_text"] == text
    await connection.send("unregister")
    assert await connection.close_code() == 1000


async def test_certificate_and_key_may_be_in_one_file(
    start: Start, certificate: Certificate, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.key.read_bytes() + certificate.certificate.read_bytes())
    running = await start(gateway_tls_cert=both)
    assert await (await connect(running, certificate.certificate)).is_silent()


async def test_a_client_that_trusts_another_certificate_does_not_connect(
    running: Running, tmp_path: Path
) -> None:
    other = certificates.make(tmp_path, "other")
    await cannot_shake_hands(running, client_context(other.certificate))


async def test_old_versions_of_tls_are_refused(running: Running, certificate: Certificate) -> None:
    context = client_context(certificate.certificate)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    await cannot_shake_hands(running, context)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b"", b"\0" * 70000]
)
async def test_a_peer_without_tls_is_dropped_and_others_are_served(
    running: Running, certificate: Certificate, sent: bytes
) -> None:
    good = await connect(running, certificate.certificate)
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
            await stream.send_eof()
            while await stream.receive_some():
                pass
    assert await good.is_silent()


async def test_a_handshake_that_fails_leaves_nothing_to_the_garbage_collector(
    running: Running,
) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 300
    gc.collect()
    gc.disable()
    try:
        for sent in (b"rubbish", hello) * 5:
            async with await trio.open_tcp_stream(running.host, running.port) as stream:
                await stream.send_all(sent)
                await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            while any(isinstance(one, ssl.SSLObject) for one in gc.get_objects()):
                await trio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_slow_tls_handshake_is_cut(
    start: Start, certificate: Certificate, mock_clock: MockClock
) -> None:
    running = await start(gateway_tls_cert=certificate.certificate, gateway_tls_key=certificate.key)
    async with await trio.open_tcp_stream(running.host, running.port) as stream:
        await stream.send_all(b"\x16\x03\x01")
        await pass_time(mock_clock, HANDSHAKE_TIMEOUT + 3)
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


# --- another certificate -------------------------------------------------------------------------


@pytest.fixture
def _level(caplog: pytest.LogCaptureFixture) -> None:
    """Have the level of this process's log as it was: a reload sets it."""
    caplog.set_level("INFO")


@pytest.mark.usefixtures("_level")
async def test_a_renewed_certificate_is_shown_after_a_reload(
    running: Running, certificate: Certificate, tmp_path: Path
) -> None:
    before = await shown(running)
    connection = await connect(running, certificate.certificate)
    certificates.make(tmp_path)
    assert await shown(running) == before
    await running.daemon.operations.reload()
    assert await shown(running) != before
    assert await (await connect(running, certificate.certificate, "another")).is_silent()
    assert await connection.is_silent()


@pytest.mark.usefixtures("_level")
async def test_a_bad_certificate_changes_nothing_and_is_named(
    running: Running, certificate: Certificate
) -> None:
    before = await shown(running)
    certificate.certificate.write_text("this is none")
    with pytest.raises(Refused) as caught:
        await running.daemon.operations.reload()
    [problem] = caught.value.problems
    assert problem.startswith(f"CLARA_GATEWAY_TLS_CERT: {certificate.certificate} and ")
    assert await shown(running) == before


# --- files ---------------------------------------------------------------------------------------


def settings(tmp_path: Path, certificate: Path, key: Path | None) -> Settings:
    return Settings(tmp_path, "", gateway_tls_cert=certificate, gateway_tls_key=key)


def problem(*arguments: Any) -> str:
    with pytest.raises(TlsError) as caught:
        server_context(settings(*arguments))
    [line] = str(caught.value).splitlines()
    return line


def test_without_a_certificate_there_is_no_tls(tmp_path: Path) -> None:
    assert server_context(Settings(tmp_path, "")) is None


def test_a_file_that_is_not_there_is_named(tmp_path: Path, certificate: Certificate) -> None:
    gone = tmp_path / "gone"
    said = f"No such file or directory: {gone}"
    assert problem(tmp_path, gone, None) == f"CLARA_GATEWAY_TLS_CERT: {said}"
    assert problem(tmp_path, certificate[0], gone) == f"CLARA_GATEWAY_TLS_KEY: {said}"


def test_a_key_that_may_not_be_read_is_named(tmp_path: Path, certificate: Certificate) -> None:
    tmp_path.chmod(0o755)
    certificate.key.chmod(0)
    with unprivileged():
        said = problem(Path("/"), *certificate)
    assert said.startswith("CLARA_GATEWAY_TLS_")
    assert "Permission denied" in said


def test_a_key_of_another_certificate_is_said(tmp_path: Path, certificate: Certificate) -> None:
    other = certificates.make(tmp_path, "other")
    assert "key values mismatch" in problem(tmp_path, certificate.certificate, other.key)


def test_a_certificate_without_its_key_is_said(tmp_path: Path, certificate: Certificate) -> None:
    assert "name a certificate and the key" in problem(tmp_path, certificate.certificate, None)


def test_what_is_no_certificate_is_said(tmp_path: Path, certificate: Certificate) -> None:
    certificate.certificate.write_bytes(b"\0\xff")
    assert "cannot be used" in problem(tmp_path, *certificate)


def test_a_key_with_a_password_is_not_waited_for(tmp_path: Path, certificate: Certificate) -> None:
    locked = tmp_path / "locked.key"
    words = ("-in", f"{certificate.key}", "-out", f"{locked}", "-aes128", "-passout", "pass:word")
    certificates.openssl("pkey", *words)
    said = problem(tmp_path, certificate.certificate, locked)
    assert said.startswith("CLARA_GATEWAY_TLS_KEY: the key has a password; ")


# --- the whole of it -----------------------------------------------------------------------------


def test_the_daemon_says_that_it_speaks_tls(tmp_path: Path, certificate: Certificate) -> None:
    made = Installation(
        tmp_path,
        CLARA_GATEWAY_TLS_CERT=f"{certificate.certificate}",
        CLARA_GATEWAY_TLS_KEY=f"{certificate.key}",
    )
    with made.daemon() as process:
        assert process.url.startswith("wss://127.0.0.1:")
        assert f"listening on {process.url};" in process.log
        assert json.loads((made.state_dir / "gateway.json").read_text())["tls"] is True
        assert made.clarad("reload").status == 0
        certificate.key.write_text("")
        said = made.clarad("reload")
        assert (said.status, said.out) == (1, "")
        assert said.err.startswith("clarad: CLARA_GATEWAY_TLS_CERT: ")


def test_a_daemon_whose_certificate_is_bad_does_not_start(tmp_path: Path) -> None:
    said = Installation(tmp_path, CLARA_GATEWAY_TLS_CERT=f"{tmp_path}/gone").clarad("run")
    assert said.status == 78
    [line] = [line for line in said.err.splitlines() if "migrated" not in line]
    assert line.startswith("clarad: CLARA_GATEWAY_TLS_CERT: No such file or directory")
