"""What is not there is said before the first call, with the mend; and nothing weaker is taken."""

import hashlib
import ssl
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from sandbox import EngineError, SandboxError, choose_engine, load, open_keeper
from tests.descriptors import at_most_open
from tests.sandbox import engines

PATIENCE: Final = 60.0
NOWHERE: Final = {"INCUS_SOCKET": "/run/no-incus.socket", "DOCKER_HOST": "unix:///run/no-docker"}

needs_incus = pytest.mark.parametrize("incus", engines.only("incus"))
needs_docker = pytest.mark.parametrize("docker", engines.only("docker"))


async def refusal(mode: str, **variables: str) -> str:
    """Why a keeper with these settings does not start."""
    with trio.fail_after(PATIENCE), pytest.raises(SandboxError) as caught:
        async with open_keeper(engines.settings(mode, **variables), engines.keeper_name()):
            pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("docker", "Docker does not answer at unix:///run/no-docker: start it, or set DOCKER_HOST"),
        ("incus", "Incus does not answer at /run/no-incus.socket: start it, or set INCUS_SOCKET"),
        ("incus-vm", "Incus does not answer at /run/no-incus.socket"),
        ("auto", "Docker does not answer at unix:///run/no-docker"),
        ("off", "there are no sandboxes: set SANDBOX_MODE"),
    ],
)
async def test_an_engine_that_is_not_there_is_said(mode: str, said: str) -> None:
    assert said in await refusal(mode, **NOWHERE)


@pytest.mark.parametrize("mode", ["docker", "incus"])
async def test_a_lack_of_files_is_said(mode: str) -> None:
    engine = await choose_engine(load({"SANDBOX_MODE": mode, **NOWHERE}), "x")
    with pytest.raises(EngineError, match="does not answer"):  # its SDK is imported, too
        await engine.names()
    with at_most_open(0), pytest.raises(EngineError, match=r"cannot be asked: .*Too many open"):
        await engine.names()


async def test_a_virtual_machine_is_not_replaced_by_a_container() -> None:
    said = await refusal("auto", INCUS_SANDBOX_TYPE="vm", **NOWHERE)
    assert "a Docker container is a weaker wall" in said


async def test_an_image_that_is_not_there_is_said_with_what_fetches_it(mode: str) -> None:
    said = await refusal(
        mode, DOCKER_SANDBOX_IMAGE="python:0.9", INCUS_SANDBOX_IMAGE="images:debian/0/cloud"
    )
    assert said.endswith(
        "fetch it with docker pull python:0.9"
        if mode == "docker"
        else "fetch it with incus image copy images:debian/0/cloud local: --alias debian/0/cloud"
    )


async def test_an_engine_that_answers_is_chosen(mode: str) -> None:
    engine = await choose_engine(engines.settings("auto"), "test")
    engine.close()
    assert engine.name == ("incus" if "incus" in engines.ANSWERING else "docker")
    variables = {"INCUS_SOCKET": NOWHERE["INCUS_SOCKET"]}
    assert (await choose_engine(engines.settings("auto", **variables), "test")).name == "docker"


@needs_docker
async def test_more_disk_than_docker_can_give_is_refused(docker: str) -> None:
    said = await refusal(docker, SANDBOX_DISK="1GiB")
    assert "write at most half of DOCKER_SANDBOX_MEMORY, which is 512MiB" in said


@needs_docker
async def test_a_runtime_that_docker_does_not_have_is_refused(docker: str) -> None:
    said = await refusal(docker, DOCKER_SANDBOX_RUNTIME="no-such-runtime")
    assert "DOCKER_SANDBOX_RUNTIME=no-such-runtime: Docker does not have it, but" in said


@needs_docker
async def test_a_runtime_that_docker_has_is_used(docker: str, nursery: trio.Nursery) -> None:
    keeper = await engines.keeper(docker, DOCKER_SANDBOX_RUNTIME="runc")
    await nursery.start(keeper.run)
    sandbox = await keeper.acquire("somebody")
    assert (await sandbox.run("true")).exit_status == 0
    nursery.cancel_scope.cancel("the test has ended")


@needs_incus
async def test_virtual_machines_are_refused_with_the_servers_own_reason(incus: str) -> None:
    assert '"driver": "lxc"' in incus_command("query", "/1.0")  # so that of `make engines` is
    for said in (
        await refusal("incus-vm"),
        await refusal("incus", INCUS_SANDBOX_TYPE="vm"),
    ):
        assert "cannot run virtual machines: vhost_vsock kernel module not loaded;" in said
        assert "set SANDBOX_MODE=incus for containers, which are a weaker wall" in said


@needs_incus
async def test_a_network_that_incus_does_not_have_is_refused(incus: str) -> None:
    said = await refusal(incus, SANDBOX_NETWORK="internet")
    assert "incus profile device add default eth0 nic network=NETWORK" in said


@needs_docker
async def test_a_network_is_there_if_it_is_wanted(docker: str, nursery: trio.Nursery) -> None:
    keeper = await engines.keeper(docker, SANDBOX_NETWORK="internet")
    await nursery.start(keeper.run)
    sandbox = await keeper.acquire("somebody")
    interfaces = await sandbox.run("ls /sys/class/net")
    assert "eth0" in interfaces.stdout.text().split()
    nursery.cancel_scope.cancel("the test has ended")


@needs_incus
async def test_the_network_of_incus_profile_is_there_if_it_is_wanted(
    incus: str, nursery: trio.Nursery
) -> None:
    device = ("profile", "device")
    nic = ("nic", "nictype=bridged", "parent=clarad0")  # that of the tests' Docker
    incus_command(*device, "add", "default", "eth0", *nic)
    try:
        keeper = await engines.keeper(incus, SANDBOX_NETWORK="internet")
        async with trio.open_nursery() as inner:
            await inner.start(keeper.run)
            sandbox = await keeper.acquire("somebody")
            interfaces = await sandbox.run("ls /sys/class/net")
            assert interfaces.stdout.text().split() == ["eth0", "lo"]
            inner.cancel_scope.cancel("the test has seen enough")
    finally:
        incus_command(*device, "remove", "default", "eth0")


@needs_docker
async def test_docker_can_be_reached_over_tcp(docker: str, nursery: trio.Nursery) -> None:
    host = engines.settings(docker).docker_host
    assert host is not None

    async def copy(source: trio.abc.ReceiveStream, target: trio.abc.HalfCloseableStream) -> None:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()

    async def forward(theirs: trio.SocketStream) -> None:
        ours = await trio.open_unix_socket(host.removeprefix("unix://"))
        async with theirs, ours, trio.open_nursery() as both:
            both.start_soon(copy, theirs, ours)
            both.start_soon(copy, ours, theirs)

    listeners = await nursery.start(partial(trio.serve_tcp, forward, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    keeper = await engines.keeper(docker, DOCKER_HOST=f"tcp://127.0.0.1:{port}")
    async with trio.open_nursery() as inner:
        await inner.start(keeper.run)
        with trio.fail_after(PATIENCE):
            sandbox = await keeper.acquire("somebody")
            assert (await sandbox.run("echo far")).stdout.kept == b"far\n"
        inner.cancel_scope.cancel("the test has seen enough")
    nursery.cancel_scope.cancel("the test has ended")


# --- Incus at a distance -------------------------------------------------------------------------


def incus_command(*words: str) -> str:
    done = subprocess.run(
        ["incus", *words],
        env=engines.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Let the tests' Incus listen on a port, and make what a client needs to reach it."""
    incus_command("config", "set", "core.https_address", "127.0.0.1:18443")
    key, certificate = str(tmp_path / "client.key"), str(tmp_path / "client.crt")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"]
    subprocess.run(
        [*new, "-nodes", "-subj", "/CN=test", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    (tmp_path / "servercerts").mkdir()
    server = ssl.get_server_certificate(("127.0.0.1", 18443))
    (tmp_path / "servercerts" / "127.0.0.1.crt").write_text(server)
    try:
        yield {"INCUS_REMOTE": "https://127.0.0.1:18443", "INCUS_CONF": str(tmp_path)}
    finally:
        incus_command("config", "unset", "core.https_address")


@needs_incus
async def test_a_remote_that_does_not_trust_us_says_how_it_would(
    incus: str, remote: dict[str, str]
) -> None:
    said = await refusal(incus, **remote)
    assert "does not trust our certificate: add" in said
    assert "incus config trust add-certificate" in said


@needs_incus
async def test_a_remote_that_trusts_us_has_sandboxes(
    incus: str, remote: dict[str, str], nursery: trio.Nursery
) -> None:
    certificate = str(Path(remote["INCUS_CONF"]) / "client.crt")
    der = ssl.PEM_cert_to_DER_cert(await trio.Path(certificate).read_text())
    incus_command("config", "trust", "add-certificate", certificate, "--name", "sandbox-test")
    try:
        keeper = await engines.keeper(incus, **remote)
        async with trio.open_nursery() as inner:
            await inner.start(keeper.run)
            with trio.fail_after(PATIENCE):
                sandbox = await keeper.acquire("somebody")
                assert (await sandbox.run("echo far")).stdout.kept == b"far\n"
            inner.cancel_scope.cancel("the test has seen enough")
    finally:
        incus_command("config", "trust", "remove", hashlib.sha256(der).hexdigest()[:12])


@needs_incus
async def test_a_remote_with_another_certificate_is_refused(
    incus: str, remote: dict[str, str]
) -> None:
    directory = Path(remote["INCUS_CONF"])
    (directory / "servercerts" / "127.0.0.1.crt").write_text((directory / "client.crt").read_text())
    assert "shows a certificate that we do not know: put it into" in await refusal(incus, **remote)


@needs_incus
async def test_a_remote_without_a_certificate_of_ours_says_how_to_make_one(
    incus: str, tmp_path: Path
) -> None:
    said = await refusal(incus, INCUS_REMOTE="https://127.0.0.1:18443", INCUS_CONF=str(tmp_path))
    assert f"{tmp_path}/client.crt is not there" in said
    assert "incus remote generate-certificate" in said


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_MODE", "docker")
    assert load().mode == "docker"
