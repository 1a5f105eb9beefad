"""The native protocol, against a reader of it and a real socket."""

import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.systemd.journal import NAME, Journal, encode, is_connected
from tests.journald import journald, parse

PATIENCE = 10.0

names = st.from_regex(NAME, fullmatch=True).filter(str.isascii)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(names, texts)))
def test_what_is_encoded_is_read_back(fields: list[tuple[str, str]]) -> None:
    assert parse(encode(fields)) == fields


@given(texts.filter(lambda text: "\n" not in text))
def test_a_value_of_one_line_is_written_as_such(value: str) -> None:
    assert encode([("MESSAGE", value)]) == f"MESSAGE={value}\n".encode()


def test_a_value_of_several_lines_has_its_length_in_front() -> None:
    assert encode([("MESSAGE", "a\nb")]) == b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"


def test_no_value_can_pass_for_a_field() -> None:
    forged = "x\nPRIORITY=0\nMESSAGE_ID=forged"
    assert parse(encode([("MESSAGE", forged)])) == [("MESSAGE", forged)]


def test_half_a_surrogate_pair_is_written_as_an_escape_sequence() -> None:
    assert encode([("MESSAGE", "\udc80")]) == rb"MESSAGE=\udc80" + b"\n"


def test_a_record_arrives(tmp_path: Path) -> None:
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
        journal.send(encode([("MESSAGE", "hello"), ("PRIORITY", "6")]))
        assert daemon.read(PATIENCE) == {"MESSAGE": "hello", "PRIORITY": "6"}
        journal.close()


def test_a_record_that_is_too_large_for_a_datagram_arrives_as_well(tmp_path: Path) -> None:
    large = "x" * (32 * 1024 * 1024)
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
        journal.send(encode([("MESSAGE", large)]))
        assert daemon.read(PATIENCE) == {"MESSAGE": large}
        assert daemon.in_memory == 1
        journal.close()


def test_what_comes_as_a_file_in_memory_is_sealed_or_journald_would_refuse_it(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "journal"))
        receiver.settimeout(PATIENCE)
        journal = Journal(str(tmp_path / "journal"))
        journal.send(encode([("MESSAGE", "x" * (32 * 1024 * 1024))]))
        _, (memory,), _, _ = socket.recv_fds(receiver, 1, 1)
        try:
            seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
            for seal in ("SEAL", "SHRINK", "GROW", "WRITE"):
                assert seals & getattr(fcntl, f"F_SEAL_{seal}")
        finally:
            os.close(memory)
            journal.close()


def test_a_journald_that_was_started_again_gets_what_follows(tmp_path: Path) -> None:
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
    with pytest.raises(OSError, match="No such file"):
        journal.send(encode([("MESSAGE", "lost")]))
    with journald(tmp_path) as daemon:
        journal.send(encode([("MESSAGE", "hello again")]))
        assert daemon.read(PATIENCE) == {"MESSAGE": "hello again"}
    journal.close()


def test_without_a_journald_there_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(str(tmp_path / "journal"))


def test_standard_error_leads_into_the_journal_if_it_is_the_stream_that_systemd_names(
    tmp_path: Path,
) -> None:
    with (tmp_path / "a").open("w") as ours, (tmp_path / "b").open("w") as other:
        found = os.fstat(ours.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_connected(environ, ours.fileno())
        assert not is_connected(environ, other.fileno())
        assert not is_connected({}, ours.fileno())
    assert not is_connected(environ, -1)


def test_who_waits_for_a_record_to_be_taken_waits_until_it_is_read(tmp_path: Path) -> None:
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
        journal.send(encode([("MESSAGE", "hello")]))
        waiter = threading.Thread(target=journal.drain, args=(PATIENCE,))
        waiter.start()
        assert waiter.is_alive()
        daemon.read(PATIENCE)
        waiter.join(PATIENCE / 2)
        assert not waiter.is_alive()
        journal.close()


def test_a_journal_that_stands_still_is_waited_for_no_longer_than_it_may_take(
    tmp_path: Path,
) -> None:
    with journald(tmp_path) as daemon:
        journal = Journal(daemon.path)
        journal.send(encode([("MESSAGE", "hello")]))
        journal.drain(0.01)
        assert daemon.read(PATIENCE) == {"MESSAGE": "hello"}
        journal.close()
