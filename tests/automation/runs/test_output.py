"""What commands write, in the log."""

import logging

import pytest

from clarad.automation.runs.output import MAX_LINE, MAX_LINES, log_output
from clarad.automation.runs.subject import Subject
from clarad.log import NOTICE
from clarad.store import Ending, Outcome
from clarad.systemd import catalogue

GREET = Subject("hook", "greet")


def ending(stdout: str = "", stderr: str = "", stdout_cut: int = 0) -> Ending:
    return Ending(Outcome.RAN, stdout=stdout, stderr=stderr, stdout_cut=stdout_cut)


def test_each_line_is_a_record_that_says_whose_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_output(GREET, "hook-1", ending("one\n\ntwo\n", "three"))
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.INFO, "hook greet: one"),
        (logging.INFO, "hook greet: two"),
        (NOTICE, "hook greet: three"),
    ]
    assert [vars(r)["fields"]["stream"] for r in caplog.records] == ["stdout", "stdout", "stderr"]
    for record in caplog.records:
        fields = vars(record)["fields"]
        assert (fields["hook"], fields["run"]) == ("greet", "hook-1")


def test_a_command_that_never_stops_writing_leaves_its_last_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    text = "".join(f"{n}\n" for n in range(1000))
    log_output(Subject("task", "count"), "task-1", ending(text, stdout_cut=5000))
    first, *lines = caplog.messages
    left_out = 1000 - MAX_LINES
    assert first == (f"task count: {left_out} lines and 5000 bytes of its stdout are left out here")
    assert lines == [f"task count: {n}" for n in range(left_out, 1000)]
    assert vars(caplog.records[0])["entry"] is catalogue.OUTPUT_CUT


def test_a_line_without_an_end_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_output(GREET, "hook-1", ending("x" * (MAX_LINE + 7)))
    assert caplog.messages == [f"hook greet: {'x' * MAX_LINE} [7 more characters]"]


def test_a_command_that_writes_nothing_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log_output(GREET, "hook-1", ending("\n \n"))
    assert caplog.records == []
