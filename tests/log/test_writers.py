"""How records are written."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clarad.log.record import NOTICE, Record, of_logging
from clarad.log.writers import Json, Text, fields_of
from clarad.systemd import catalogue
from tests.hostile import HOSTILE

NOON: Final = datetime(2026, 1, 1, 12, 0, 0, 250_000).timestamp()
NEVER: Final = threading.Event()


def of(message: str, level: int = logging.INFO, **fields: Any) -> Record:
    """Return what becomes of a call of `logging`."""
    made = logging.LogRecord("clarad.test", level, "/a/b.py", 7, message, (), None, "act")
    made.created = NOON
    for name, value in fields.items():
        setattr(made, name, value)
    return of_logging(made)


class Pipe:
    """Standard error, as it is read."""

    def __init__(self, make: Callable[[int], Text | Json]) -> None:
        self.read_end, self.write_end = os.pipe()
        self.writer = make(self.write_end)

    def write(self, *records: Record) -> str:
        assert self.writer.write(records, NEVER) == 0
        return os.read(self.read_end, 65536).decode()

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
def text() -> Iterator[Pipe]:
    made = Pipe(lambda fd: Text(fd, colours=False))
    yield made
    made.close()


@pytest.fixture
def coloured() -> Iterator[Pipe]:
    made = Pipe(lambda fd: Text(fd, colours=True))
    yield made
    made.close()


@pytest.fixture
def as_json() -> Iterator[Pipe]:
    made = Pipe(Json)
    yield made
    made.close()


def failure(said: str = "no") -> BaseException:
    try:
        raise ValueError(said)
    except ValueError as error:
        return error


def test_text_is_a_line_with_its_time_and_level(text: Pipe) -> None:
    assert text.write(of("hello"), of("careful", logging.WARNING), of("changed", NOTICE)) == (
        "2026-01-01 12:00:00,250 INFO    hello\n"
        "2026-01-01 12:00:00,250 WARNING careful\n"
        "2026-01-01 12:00:00,250 NOTICE  changed\n"
    )


def test_levels_are_coloured_and_what_is_said_is_not(coloured: Pipe) -> None:
    assert coloured.write(of("oh", logging.ERROR)) == (
        "2026-01-01 12:00:00,250 \x1b[31mERROR  \x1b[0m oh\n"
    )
    assert coloured.write(of("hello")) == "2026-01-01 12:00:00,250 INFO    hello\n"


def test_lines_of_a_traceback_are_below_it_and_indented(text: Pipe) -> None:
    error = failure("x\n2026-01-01 12:00:00,250 INFO    stopped")
    record = of("it failed", logging.ERROR, exc_info=(type(error), error, error.__traceback__))
    first, *more = text.write(record).splitlines()
    assert first.endswith("ERROR   it failed")
    assert more[0] == "    Traceback (most recent call last):"
    assert more[-1] == "    2026-01-01 12:00:00,250 INFO    stopped"
    assert all(line.startswith("    ") for line in more)


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_can_forge_a_line_or_steer_a_terminal(text: Pipe, value: str) -> None:
    first, *more = text.write(of(value)).splitlines()
    assert first.isprintable()
    assert all(line.isprintable() and line.startswith("    ") for line in more)


@given(st.text(st.characters()))
def test_whatever_is_said_begins_one_line_in_text(message: str) -> None:
    pipe = Pipe(lambda fd: Text(fd, colours=True))
    written = pipe.write(of(message))
    pipe.close()
    assert written.endswith("\n")
    assert [line for line in written.split("\n")[:-1] if not line.startswith("    ")] == [
        written.split("\n")[0]
    ]
    assert written.replace("\n", "").isprintable()


@given(st.text(st.characters()), st.text(st.characters()))
def test_whatever_is_said_is_one_line_of_json(message: str, user: str) -> None:
    pipe = Pipe(Json)
    written = pipe.write(of(message, fields={"user_id": user}))
    pipe.close()
    assert written.removesuffix("\n").isprintable() or written.isascii()
    assert len(written.splitlines()) == 1
    shown = json.loads(written)
    assert shown["clara_user_id"] == user
    assert shown["message"].isprintable() or "\n" in shown["message"]


def test_json_has_the_fields_of_the_journal(as_json: Pipe) -> None:
    about = catalogue.TASK_FAILED.about(task="backup", run="task-1", attempt=2, reason=None)
    shown = json.loads(as_json.write(of("it failed", logging.WARNING, **about)))
    assert datetime.fromisoformat(shown.pop("timestamp")).timestamp() == NOON
    assert shown == {
        "level": "warning",
        "message": "it failed",
        "message_id": catalogue.TASK_FAILED.message_id,
        "priority": 4,
        "syslog_identifier": "clarad",
        "logger": "clarad.test",
        "code_file": "/a/b.py",
        "code_line": 7,
        "code_func": "act",
        "clara_task": "backup",
        "clara_run": "task-1",
        "clara_attempt": 2,
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (NOTICE, 5),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
    ],
)
def test_levels_are_the_journal_s_priorities(level: int, priority: int) -> None:
    assert fields_of(of("hello", level))["PRIORITY"] == priority


def test_a_traceback_is_whole_in_one_message() -> None:
    error = failure()
    record = of("it failed", exc_info=(type(error), error, error.__traceback__))
    message = str(fields_of(record)["MESSAGE"])
    assert message.startswith("it failed\nTraceback (most recent call last):\n")
    assert message.endswith("\nValueError: no")


def test_no_field_can_pass_for_another_one() -> None:
    record = of("hello", fields={"timestamp": "forged", "a=b": "x", "A\nB": "x", "_pid": 1})
    fields = fields_of(record)
    assert fields["CLARA_TIMESTAMP"] != "forged"
    assert {name for name in fields if name.startswith("CLARA_")} == {
        "CLARA_TIMESTAMP",
        "CLARA__PID",
    }


def test_a_terminal_that_was_made_not_to_block_gets_everything(text: Pipe) -> None:
    os.set_blocking(text.write_end, False)
    records = [of("x" * 1000) for _ in range(1000)]
    writing = threading.Thread(target=text.writer.write, args=(records, NEVER))
    writing.start()
    left = 1000 * len("2026-01-01 12:00:00,250 INFO    \n") + 1000 * 1000
    while left:
        left -= len(os.read(text.read_end, 65536))
    writing.join()


def test_standard_error_that_nobody_reads_is_no_fault(text: Pipe) -> None:
    os.close(text.read_end)
    assert text.writer.write([of("hello")], NEVER) == 0
    text.read_end = os.open(os.devnull, os.O_RDONLY)
