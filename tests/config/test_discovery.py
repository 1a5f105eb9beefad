"""The note in the state directory that says where the daemon is."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.config import discovery
from clarad.config.discovery import Address


def test_what_is_written_down_is_found(tmp_path: Path) -> None:
    discovery.announce(tmp_path, Address("127.0.0.1", 1234), 1, control=tmp_path / "control.sock")
    assert discovery.find(tmp_path) == Address("127.0.0.1", 1234)
    assert discovery.find_control(tmp_path) == tmp_path / "control.sock"


def test_a_path_that_is_no_text_is_found(tmp_path: Path) -> None:
    control = Path("/run/\udcff/control.sock")
    discovery.announce(tmp_path, Address("127.0.0.1", 1234), 1, control=control)
    assert discovery.find_control(tmp_path) == control


def test_what_is_withdrawn_is_not_found(tmp_path: Path) -> None:
    discovery.announce(tmp_path, Address("127.0.0.1", 1234), 1, control=tmp_path / "control.sock")
    for _ in range(2):
        discovery.withdraw(tmp_path)
        assert discovery.find(tmp_path) is None
        assert discovery.find_control(tmp_path) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary()
    | st.sampled_from([b"[]", b"7", b"null", b'{"control": 7}', b'{"host": "h", "port": "x"}'])
)
def test_what_is_no_such_note_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / discovery.FILE_NAME).write_bytes(content)
    assert discovery.find(tmp_path) is None
    assert discovery.find_control(tmp_path) is None


# --- where the control socket is -----------------------------------------------------------------

STATE = Path("/var/lib/clarad")


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/var/lib/clarad/control.sock"),
        ({"RUNTIME_DIRECTORY": ""}, "/var/lib/clarad/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/clarad"}, "/run/clarad/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/clarad:/run/other"}, "/run/clarad/control.sock"),
    ],
)
def test_the_control_socket_is_in_the_runtime_directory_if_there_is_one(
    environ: dict[str, str], path: str
) -> None:
    assert discovery.control_path(STATE, environ) == Path(path)


def test_a_command_looks_wherever_it_may_be(tmp_path: Path) -> None:
    discovery.announce(
        tmp_path, Address("127.0.0.1", 1), 1, control=Path("/run/clarad/control.sock")
    )
    environ = {"RUNTIME_DIRECTORY": "/run/mine"}
    assert discovery.control_paths(tmp_path, environ) == [
        Path("/run/mine/control.sock"),
        Path("/run/clarad/control.sock"),
        tmp_path / "control.sock",
    ]


def test_a_command_looks_in_each_place_once(tmp_path: Path) -> None:
    control = discovery.control_path(tmp_path, {})
    discovery.announce(tmp_path, Address("127.0.0.1", 1), 1, control=control)
    assert discovery.control_paths(tmp_path, {}) == [control]
