from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.settings import MIB, EngineSettings, Settings, SettingsError, load, size


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    return caught.value.problems


def test_the_defaults_are_those_of_an_older_clara() -> None:
    settings = load({"INCUS_SOCKET": "/var/lib/incus/unix.socket"})
    assert settings == Settings(incus_config=Path("~/.config/incus").expanduser())
    assert settings.mode == "off"
    assert settings.incus == EngineSettings("images:debian/12/cloud", 900, 512 * MIB, 1)
    assert settings.docker == EngineSettings("python:3.12-slim", 900, 512 * MIB, 1)
    assert (settings.pids, settings.network, settings.pool) == (256, "none", 1)


def test_every_setting_is_read() -> None:
    settings = load(
        {
            "SANDBOX_MODE": "incus-vm",
            "DOCKER_SANDBOX_IMAGE": "python:3.13",
            "DOCKER_SANDBOX_TIMEOUT": "60",
            "DOCKER_SANDBOX_MEMORY": "1GiB",
            "DOCKER_SANDBOX_CPU": "0.5",
            "DOCKER_SANDBOX_RUNTIME": "runsc",
            "DOCKER_HOST": "unix:///run/docker.sock",
            "INCUS_SANDBOX_IMAGE": "own",
            "INCUS_SANDBOX_TYPE": "vm",
            "INCUS_SANDBOX_TIMEOUT": "0.5",
            "INCUS_SANDBOX_MEMORY": "256m",
            "INCUS_SANDBOX_CPU": "2",
            "INCUS_REMOTE": "https://incus.example.org:8443",
            "INCUS_CONF": "/etc/incus-client",
            "INCUS_DIR": "/srv/incus",
            "SANDBOX_PIDS": "64",
            "SANDBOX_DISK": "2GB",
            "SANDBOX_NETWORK": "internet",
            "SANDBOX_POOL": "3",
            "SANDBOX_MAX": "9",
        }
    )
    assert settings == Settings(
        mode="incus-vm",
        docker=EngineSettings("python:3.13", 60, 1024 * MIB, 0.5),
        incus=EngineSettings("own", 0.5, 256 * MIB, 2),
        docker_host="unix:///run/docker.sock",
        docker_runtime="runsc",
        incus_type="vm",
        incus_remote="https://incus.example.org:8443",
        incus_socket=Path("/srv/incus/unix.socket"),
        incus_config=Path("/etc/incus-client"),
        pids=64,
        disk=2 * 10**9,
        network="internet",
        pool=3,
        max=9,
    )


def test_everything_that_is_wrong_is_said_at_once_with_the_mend() -> None:
    assert problems(
        SANDBOX_MODE="podman",
        SANDBOX_NETWORK="all",
        SANDBOX_PIDS="many",
        SANDBOX_DISK="1 MiB",
        DOCKER_SANDBOX_MEMORY="16m",
        DOCKER_SANDBOX_CPU="nan",
        DOCKER_SANDBOX_IMAGE="two words",
        DOCKER_HOST="ssh://host",
        INCUS_SANDBOX_TIMEOUT="0",
        INCUS_REMOTE="http://host",
    ) == [
        "SANDBOX_MODE='podman': write one of off, auto, docker, incus, incus-vm",
        "DOCKER_SANDBOX_IMAGE='two words': write the image's name, without spaces",
        "DOCKER_SANDBOX_MEMORY='16m': write at least 64MiB: a Python has to fit",
        "DOCKER_SANDBOX_CPU='nan': write a number of CPUs, such as 1 or 0.5",
        "INCUS_SANDBOX_TIMEOUT='0': write a number of seconds above 0, such as 900",
        "DOCKER_HOST='ssh://host': write unix:///path/to/docker.sock or tcp://host:port",
        "INCUS_REMOTE='http://host': write local, or https://host:8443",
        "SANDBOX_PIDS='many': write a whole number from 16",
        "SANDBOX_DISK='1 MiB': write at least 16MiB",
        "SANDBOX_NETWORK='all': write one of none, internet",
    ]


def test_contradictions_are_said() -> None:
    assert (
        "contradict each other"
        in problems(SANDBOX_MODE="incus-vm", INCUS_SANDBOX_TYPE="container")[0]
    )
    assert "more than SANDBOX_MAX=2" in problems(SANDBOX_POOL="3", SANDBOX_MAX="2")[0]


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load({"SANDBOX_MODE": "", "SANDBOX_PIDS": " "}).pids == 256


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512MB", 512_000_000),
        ("1.5 GiB", 3 << 29),
        ("100", 100),
        ("100B", 100),
        ("2k", 2048),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_written_in_many_ways(text: str, value: int) -> None:
    assert size(text) == value


@given(st.text())
def test_whatever_is_written_is_a_size_or_refused(text: str) -> None:
    try:
        assert size(text) >= 0
    except ValueError as error:
        assert "write a size" in str(error)  # noqa: PT017 - either is fine


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1m", "1x", "1mm", "0x10", "\u0661m", "1e3", "9" * 99]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a size, such as 512MiB"):
        size(text)
