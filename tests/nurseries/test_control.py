"""The control socket: what an operator asks for is done, answered once, and never in the way."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from clarad.nurseries.control import MAX_REQUESTS
from clarad.transport.outbox import MAX_FRAMES
from tests.control import Control
from tests.peer import Peer


@pytest.fixture
async def control(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Control]:
    served = Control(tmp_path / "control.sock", nursery)
    await nursery.start(served.gateway.run)
    yield served
    await served.stop()
    nursery.cancel_scope.cancel("the test has ended")


async def lives(peer: Peer) -> bool:
    """Whether the connection still does its work, and had nothing more to say."""
    await peer.send("reload", id="still there?")
    return bool((await peer.receive())["type"] == "done")


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("reload", {}, "reloaded: 2 hooks, 1 task"),
        ("pause_task", {"task": "backup"}, "backup is paused"),
        ("resume_task", {"task": "backup"}, "backup is resumed"),
        ("sandbox_reset", {"owner": "ann"}, "ann has no sandbox any more"),
        ("sandbox_prune", {}, "removed 2 sandboxes"),
    ],
)
async def test_what_is_done_at_once_is_answered_with_done(
    control: Control, kind: str, fields: dict[str, Any], text: str
) -> None:
    peer = await control.connect()
    await peer.send(kind, id="1", **fields)
    assert await peer.receive() == {"type": "done", "id": "1", "text": text}
    assert control.operations.asked == [(kind, *fields.values())]
    assert await lives(peer)


async def test_a_run_is_named_when_it_starts_and_again_with_its_outcome(control: Control) -> None:
    peer = await control.connect()
    await peer.send("run_task", id="1", task="backup", caused_by=["run-7", "run-8"])
    assert await peer.receive() == {"type": "started", "id": "1", "run": "run-backup"}
    control.operations.release["backup"].set()
    assert await peer.receive() == {
        "type": "done",
        "id": "1",
        "text": "backup has ended",
        "run": "run-backup",
        "outcome": "completed",
    }
    assert control.operations.asked == [("run_task", "backup", "run-7", "run-8")]


async def test_a_replay_is_a_run_of_its_own(control: Control) -> None:
    peer = await control.connect()
    await peer.send("replay_run", id="1", run="run-7")
    assert (await peer.expect("started"))["run"] == "again-run-7"
    done = await peer.expect("done")
    assert (done["run"], done["outcome"]) == ("again-run-7", "failed")


async def test_the_daemon_says_that_it_is_well(control: Control) -> None:
    peer = await control.connect()
    await peer.send("status", id="1")
    assert await peer.receive() == {"type": "done", "id": "1", "text": "all is well"}


async def test_what_is_asked_for_comes_as_rows(control: Control) -> None:
    peer = await control.connect()
    await peer.send("sandbox_status", id="1")
    assert await peer.receive() == {
        "type": "done",
        "id": "1",
        "text": "",
        "rows": [{"name": "box-1", "owner": None, "idle": 1.5, "running": 0}],
    }


async def test_what_a_command_writes_comes_before_how_it_ended(control: Control) -> None:
    peer = await control.connect()
    await peer.send("sandbox_exec", id="1", owner="ann", argv=["ls", "-l"])
    for stream, text in (("stdout", "out\n"), ("stderr", "err\n")):
        output = {"type": "output", "id": "1", "stream": stream, "text": text}
        assert await peer.receive() == output
    control.operations.release["ann"].set()
    assert await peer.receive() == {
        "type": "done",
        "id": "1",
        "text": "7 bytes were cut out of the output",
        "exit_status": -9,
    }
    assert control.operations.asked == [("sandbox_exec", "ann", "ls", "-l")]


async def test_what_is_written_in_small_pieces_comes_in_large_ones(control: Control) -> None:
    peer = await control.connect()
    await peer.send("sandbox_exec", id="1", owner="hasty", argv=["dots"])
    assert (await peer.expect("output"))["text"] == "out\n" * 10_000


async def test_a_command_that_finds_no_sandbox_is_refused(control: Control) -> None:
    peer = await control.connect()
    await peer.send("sandbox_exec", id="1", owner="nobody", argv=["ls"])
    assert (await peer.expect("refused"))["problems"] == ["all 16 sandboxes are taken"]
    assert await lives(peer)


async def test_a_command_ends_when_its_operator_has_gone(control: Control) -> None:
    peer = await control.connect()
    await peer.send("sandbox_exec", id="1", owner="ann", argv=["ls"])
    await peer.expect("output")
    await peer.drop()
    with trio.fail_after(10):
        await control.operations.abandoned.wait()


async def test_what_is_refused_is_answered_with_every_problem(control: Control) -> None:
    peer = await control.connect()
    await peer.send("run_task", id="1", task="unknown")
    assert await peer.receive() == {
        "type": "refused",
        "id": "1",
        "problems": ["there is no task 'unknown'", "there are no tasks at all"],
    }


async def test_requests_of_one_connection_do_not_wait_for_each_other(control: Control) -> None:
    peer = await control.connect()
    for task in ("slow", "fast"):
        await peer.send("run_task", id=task, task=task)
        assert (await peer.expect("started"))["id"] == task
    for task in ("fast", "slow"):
        control.operations.release[task].set()
        assert (await peer.expect("done"))["id"] == task


async def test_an_id_can_be_taken_again_once_it_is_answered(control: Control) -> None:
    peer = await control.connect()
    for _ in range(2):
        await peer.send("reload", id="1")
        assert (await peer.expect("done"))["id"] == "1"


async def test_an_id_that_is_under_way_is_not_taken_again(control: Control) -> None:
    peer = await control.connect()
    await peer.send("run_task", id="1", task="backup")
    await peer.expect("started")
    await peer.send("reload", id="1")
    error = await peer.expect("error")
    assert (error["code"], error["request_id"]) == ("invalid_message", "1")
    control.operations.release["backup"].set()
    await peer.expect("done")
    assert control.operations.asked == [("run_task", "backup")]


async def test_one_request_too_many_is_told_to_wait(control: Control) -> None:
    peer = await control.connect()
    for n in range(MAX_REQUESTS):
        await peer.send("run_task", id=str(n), task="backup")
        await peer.expect("started")
    await peer.send("reload", id="one too many")
    assert (await peer.expect("refused"))["id"] == "one too many"
    control.operations.release["backup"].set()
    for _ in range(MAX_REQUESTS):
        await peer.expect("done")
    assert await lives(peer)


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "request_id"),
    [
        ("{", "invalid_json", None),
        ("[]", "invalid_message", None),
        ('{"id":"1"}', "invalid_message", "1"),
        ('{"type":"reload"}', "invalid_message", None),
        ('{"type":"run_task","id":"1"}', "invalid_message", "1"),
        ('{"type":"register","id":"1","node_id":"n","platform":"p"}', "unknown_type", "1"),
        (b'{"type":"reload","id":"1"}', "invalid_message", None),
    ],
)
async def test_a_frame_that_is_no_request_gets_an_error_and_the_connection_stays(
    control: Control, text: str | bytes, code: str, request_id: str | None
) -> None:
    peer = await control.connect()
    await peer.send_text(text)
    error = await peer.expect("error")
    assert (error["code"], error.get("request_id")) == (code, request_id)
    assert error["message"]
    assert await lives(peer)


async def test_what_is_no_websocket_is_refused_and_others_are_served(control: Control) -> None:
    peer = await control.connect()
    async with await control.open_stream() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(10):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 4")
    assert await lives(peer)


async def test_a_client_that_does_not_read_is_closed_and_others_are_served(
    mock_clock: MockClock, control: Control
) -> None:
    # Time stands still, so that the close is waited for, however slow this machine is.
    slow, good = await control.connect(), await control.connect()
    for n in range(3 * MAX_FRAMES):
        await slow.send("x" * 64, id=f"{n:0255}")
    assert await lives(good)
    assert await slow.close_code() == 4008


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["crash", "unprintable"])
async def test_a_failure_is_logged_and_answered_without_its_insides(
    control: Control, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await control.connect()
    await peer.send("run_task", id="1", task=task)
    refused = await peer.expect("refused")
    assert refused == {
        "type": "refused",
        "id": "1",
        "problems": ["this failed inside the daemon; its log says why"],
    }
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert logged.exc_info is not None
    assert task in logged.getMessage()
    assert await lives(peer)


async def test_a_run_goes_on_when_its_operator_has_gone(control: Control) -> None:
    peer = await control.connect()
    await peer.send("run_task", id="1", task="backup")
    await peer.expect("started")
    await peer.drop()
    with trio.fail_after(10):
        await control.operations.abandoned.wait()
        control.operations.release["backup"].set()
        await control.operations.ended["backup"].wait()


async def test_a_stop_closes_the_connections_of_operators_that_wait(control: Control) -> None:
    idle, waiting = await control.connect(), await control.connect()
    await waiting.send("run_task", id="1", task="backup")
    await waiting.expect("started")
    control.gateway.stop_listening()
    control.gateway.close_all()
    assert await idle.close_code() == 1001
    assert await waiting.close_code() == 1001


async def test_who_asks_for_what_is_logged(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    peer = await control.connect()
    await peer.send("pause_task", id="1", task="two\nlines")
    await peer.expect("done")
    (logged,) = [r.getMessage() for r in caplog.records if r.name == "clarad.nurseries.control"]
    assert logged.startswith("uid ")
    assert r"two\nlines" in logged


async def test_of_a_long_command_the_beginning_is_logged(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    peer = await control.connect()
    await peer.send("sandbox_exec", id="1", owner="nobody", argv=["x" * 100_000])
    await peer.expect("refused")
    (logged,) = [r.getMessage() for r in caplog.records if r.name == "clarad.nurseries.control"]
    assert "nobody" in logged
    assert len(logged) < 1100
