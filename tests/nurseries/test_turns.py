"""A message's life on the wire: docs/protocol.md, section 4."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest
import trio
import trio.testing

from clarad.events import EventType
from clarad.messages import execution
from clarad.messages.inflight import MAX_WAITING
from tests.conftest import Running, Start


def types(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["type"] for frame in frames]


async def test_an_answer_streams_and_ends_in_one_terminal_frame(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hello")
    frames = await peer.frames_of("m1")
    assert types(frames) == ["response_start", "response_chunk", "response_end"]
    assert frames[1]["chunk"] == frames[2]["full_text"] == "hello"
    assert len({frame["id"] for frame in frames}) == 1
    assert await peer.is_silent()


async def test_a_node_without_streaming_gets_no_chunks(running: Running) -> None:
    peer = await running.node(capabilities=())
    await peer.ask("m1", "hello")
    frames = await peer.frames_of("m1")
    assert types(frames) == ["response_start", "response_end"]
    assert frames[-1]["full_text"] == "hello"


async def test_accepted_comes_first_and_only_to_a_node_that_asked_for_it(running: Running) -> None:
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("m1")
    frames = await peer.frames_of("m1")
    assert frames[0] == {"type": "accepted", "request_id": "m1", "duplicate": False}


async def test_tools_are_shown_while_they_run(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "tool")
    _, begun, ended, end = await peer.frames_of("m1")
    assert (begun["type"], begun["tool_name"], begun["step"]) == ("tool_start", "hammer", 1)
    assert (ended["type"], ended["success"]) == ("tool_result", True)
    assert end["tool_count"] == 1


async def test_messages_of_one_channel_run_one_at_a_time_in_order(running: Running) -> None:
    peer = await running.node()
    for n in range(3):
        await peer.ask(f"m{n}", "hold")
    waiting: dict[str, int] = {}
    while len(waiting) < 2:
        frame = await peer.receive()
        if frame["type"] == "status":
            waiting[frame["request_id"]] = frame["queue_length"]
    assert waiting == {"m1": 1, "m2": 2}
    for n in range(3):
        with trio.fail_after(10):
            await running.responder.begun[f"m{n}"].wait()
        assert len(running.responder.ran) == n + 1
        running.responder.release[f"m{n}"].set()
        assert (await peer.outcome_of(f"m{n}"))["type"] == "response_end"
    assert running.responder.ran == ["m0", "m1", "m2"]


async def test_channels_run_side_by_side_on_one_connection(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold", channel="a")
    await peer.ask("m2", "quick", channel="b")
    assert (await peer.outcome_of("m2"))["full_text"] == "quick"
    running.responder.release["m1"].set()
    assert (await peer.outcome_of("m1"))["full_text"] == "partly done"


async def test_a_channel_is_shared_by_its_users(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold")
    await peer.ask("m2", "hello", user={"id": "test-other", "platform_id": "other"})
    while (await peer.receive())["type"] != "status":
        pass
    assert running.responder.ran == ["m1"]


async def test_a_full_channel_says_so_and_goes_on(running: Running) -> None:
    peer = await running.node()
    for n in range(MAX_WAITING + 1):
        await peer.ask(f"m{n}", "hold")
    await peer.ask("too-many", "hold")
    refused = await peer.outcome_of("too-many")
    assert (refused["code"], refused["recoverable"]) == ("queue_full", True)
    await peer.ask("elsewhere", "hello", channel="other")
    assert (await peer.outcome_of("elsewhere"))["type"] == "response_end"


# --- cancelling ----------------------------------------------------------------------------------


async def test_a_running_message_is_cancelled_with_the_reason(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await peer.send("cancel", request_id="m1", reason="changed my mind")
    outcome = await peer.outcome_of("m1")
    assert (outcome["type"], outcome["reason"]) == ("cancelled", "changed my mind")
    assert outcome["stopped"] == {"tools": 0, "processes": 0, "sandbox_execs": 0}


async def test_a_waiting_message_gets_cancelled_alone(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold")
    await peer.ask("m2", "hold")
    while (await peer.receive())["type"] != "status":
        pass
    await peer.send("cancel", request_id="m2")
    assert types(await peer.frames_of("m2")) == ["cancelled"]
    running.responder.release["m1"].set()
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    assert running.responder.ran == ["m1"]


async def test_a_cancel_that_overtakes_the_store_still_ends_the_message(running: Running) -> None:
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("m1", "hold")
    await peer.send("cancel", request_id="m1")
    frames = await peer.frames_of("m1")
    assert types(frames)[0] == "accepted"
    assert types(frames)[-1] == "cancelled"
    assert await peer.is_silent()


async def test_of_many_cancels_the_first_wins(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "slow to stop")
    await running.responder.begun["m1"].wait()
    await peer.send("cancel", request_id="m1", reason="first")
    await peer.send("cancel", request_id="m1", reason="second")
    while (frame := await peer.receive())["type"] != "error":
        pass
    assert (frame["code"], frame["request_id"]) == ("not_found", "m1")
    running.responder.release["m1"].set()
    outcome = await peer.expect("cancelled")
    assert outcome["reason"] == "first"
    assert outcome["stopped"]["processes"] == 3


async def test_a_cancelled_message_says_nothing_more(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "slow to stop")
    await running.responder.begun["m1"].wait()
    await peer.send("cancel", request_id="m1")
    running.responder.release["m1"].set()
    assert types(await peer.frames_of("m1")) == ["response_start", "cancelled"]
    assert await peer.is_silent()


async def test_a_message_can_be_cancelled_from_another_connection_of_the_node(
    running: Running,
) -> None:
    first = await running.node("same")
    await first.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    second = await running.node("same")
    await second.send("cancel", request_id="m1")
    assert (await second.outcome_of("m1"))["type"] == "cancelled"


async def test_another_node_cannot_cancel_it(running: Running) -> None:
    owner, other = await running.node("owner"), await running.node("other")
    await owner.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await other.send("cancel", request_id="m1")
    assert (await other.outcome_of("m1"))["code"] == "not_found"
    running.responder.release["m1"].set()
    assert (await owner.outcome_of("m1"))["type"] == "response_end"


async def test_cancelling_what_is_not_there_says_so(running: Running) -> None:
    peer = await running.node()
    await peer.send("cancel", request_id="nothing")
    assert (await peer.outcome_of("nothing"))["code"] == "not_found"


async def test_the_event_of_a_cancel_says_why_who_how_long_and_what(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "slow to stop")
    await running.responder.begun["m1"].wait()
    await peer.send("cancel", request_id="m1", reason="enough")
    running.responder.release["m1"].set()
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert (event.request_id, event.node_id, event.platform) == ("m1", "node-1", "test")
    assert (event.data["reason"], event.data["by"]) == ("enough", "node-1")
    assert event.data["stopped"] == {"tools": 0, "processes": 3, "sandbox_execs": 0}
    assert event.data["stopped_in"] >= 0


# --- failing -------------------------------------------------------------------------------------


async def test_a_responder_that_refuses_tells_the_user_why(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "refuse")
    outcome = await peer.outcome_of("m1")
    assert (outcome["code"], outcome["message"]) == ("processing_error", "I would rather not.")


async def test_the_reason_is_found_inside_a_nursery_s_group(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "fail in a nursery")
    assert (await peer.outcome_of("m1"))["message"] == "From deep inside."


async def test_a_crash_tells_the_log_and_not_the_user(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await running.node()
    await peer.ask("m1", "crash")
    outcome = await peer.outcome_of("m1")
    assert outcome["code"] == "processing_error"
    assert "passwd" not in outcome["message"]
    assert "/etc/passwd" in caplog.text
    await peer.ask("m2", "hello")
    assert (await peer.outcome_of("m2"))["type"] == "response_end"


async def test_a_message_whose_turn_comes_while_the_store_fails_waits_and_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "STORE_RETRY", 0.01)
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await peer.ask("m2", "hello")
    await peer.ask("m3", "hello")
    path = running.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE UPDATE OF begun_at ON clarad_messages"
            " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
        running.responder.release["m1"].set()
        with trio.fail_after(10):
            while "message 'm2' waits, the store failed: the disk is full" not in caplog.text:
                await trio.sleep(0.01)
            await peer.send("cancel", request_id="m2")
            while "message 'm3' waits" not in caplog.text:
                await trio.sleep(0.01)
        assert running.responder.ran == ["m1"]
        database.execute("DROP TRIGGER full")
    outcomes = await peer.outcomes_of("m1", "m2", "m3")
    assert types(outcomes) == ["response_end", "cancelled", "response_end"]
    assert running.responder.ran == ["m1", "m3"]


async def test_an_answer_without_end_is_cut_off(running: Running) -> None:
    peer = await running.node(capabilities=())
    await peer.ask("m1", "endless")
    outcome = await peer.outcome_of("m1")
    assert outcome["code"] == "processing_error"
    assert "longer" in outcome["message"]


# --- timeouts ------------------------------------------------------------------------------------


async def test_a_message_that_takes_too_long_times_out(start: Start) -> None:
    running = await start(message_timeout=0.05)
    peer = await running.node()
    await peer.ask("m1", "hold")
    outcome = await peer.outcome_of("m1")
    assert (outcome["type"], outcome["code"]) == ("error", "timeout")
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert (event.data["reason"], event.data["by"]) == ("timeout", "deadline")


async def test_waiting_does_not_count_against_the_message_timeout(start: Start) -> None:
    running = await start(message_timeout=0.3)
    peer = await running.node()
    for n in range(4):
        await peer.ask(f"m{n}", "hold")
    for n in range(3):
        assert (await peer.outcome_of(f"m{n}"))["code"] == "timeout"
    await running.responder.begun["m3"].wait()
    running.responder.release["m3"].set()
    assert (await peer.outcome_of("m3"))["type"] == "response_end"


async def test_a_session_starts_with_its_first_message_and_ends_when_nothing_happens(
    start: Start,
) -> None:
    running = await start(session_timeout=0.05)
    peer = await running.node()
    await peer.ask("m1")
    begun = await running.event(EventType.SESSION_START)
    assert (begun.platform, begun.user_id, begun.channel_id) == ("test", "test-u", "c")
    timeout = await running.event(EventType.SESSION_TIMEOUT)
    ended = await running.event(EventType.SESSION_END)
    assert begun.session_id == timeout.session_id == ended.session_id
    assert ended.data == {"reason": "timeout"}
    await peer.ask("m2")
    again = await running.event(EventType.SESSION_START)
    assert again.session_id != begun.session_id


async def test_sessions_without_a_message_cost_no_task(running: Running) -> None:
    peer = await running.node()
    turns = running.daemon.turns
    assert turns._nursery is not None
    before = len(turns._nursery.child_tasks)
    for n in range(3):
        await peer.ask(f"m{n}", channel=f"{n}")
        assert (await peer.outcome_of(f"m{n}"))["type"] == "response_end"
    with trio.fail_after(10):
        await turns.drained()
        await trio.testing.wait_all_tasks_blocked()
    assert len(turns.sessions) == 3
    assert len(turns._nursery.child_tasks) == before


async def test_a_session_with_a_message_that_works_or_waits_does_not_time_out(
    start: Start,
) -> None:
    running = await start(session_timeout=0.05)
    peer = await running.node()
    await peer.ask("works", "hold")
    await peer.ask("waits", "hold", user={"id": "test-other", "platform_id": "other"})
    while (await peer.receive())["type"] != "status":
        pass
    await peer.ask("later", channel="another")
    assert (await peer.outcome_of("later"))["type"] == "response_end"
    # This session is younger than the other two: their timeout is over when it has ended.
    assert (await running.event(EventType.SESSION_TIMEOUT)).channel_id == "another"
    running.responder.release["works"].set()
    running.responder.release["waits"].set()
    outcomes = await peer.outcomes_of("works", "waits")
    assert types(outcomes) == ["response_end", "response_end"]


# --- sent again ----------------------------------------------------------------------------------


async def test_a_message_that_is_sent_again_while_it_runs_runs_once(running: Running) -> None:
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await peer.ask("m1", "hold")
    while (frame := await peer.receive())["type"] != "accepted" or not frame["duplicate"]:
        pass
    running.responder.release["m1"].set()
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    assert running.responder.ran == ["m1"]
    assert await peer.is_silent()


async def test_sent_again_after_its_end_a_message_is_not_answered_twice(running: Running) -> None:
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("m1")
    await peer.outcome_of("m1")
    await peer.ask("m1")
    assert await peer.expect("accepted") == {
        "type": "accepted",
        "request_id": "m1",
        "duplicate": True,
    }
    assert await peer.is_silent()
    assert running.responder.ran == ["m1"]


async def test_sent_again_on_another_connection_the_node_gets_what_it_missed(
    running: Running,
) -> None:
    first = await running.node("same", ("accepted",))
    await first.ask("m1", "hello")
    await first.outcome_of("m1")
    second = await running.node("same", ("accepted",))
    await second.ask("m1", "hello")
    frames = await second.frames_of("m1")
    assert types(frames) == ["accepted", "response_end"]
    assert frames[0]["duplicate"] is True
    assert running.responder.ran == ["m1"]


async def test_an_id_that_is_used_for_another_message_is_refused(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hello")
    await peer.outcome_of("m1")
    await peer.ask("m1", "something else")
    assert (await peer.outcome_of("m1"))["code"] == "invalid_message"


async def test_the_same_id_in_another_channel_is_another_message(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hello", channel="a")
    await peer.outcome_of("m1")
    await peer.ask("m1", "hello", channel="b")
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    assert len(running.responder.ran) == 2


# --- lost connections and stops ------------------------------------------------------------------


async def test_a_lost_connection_ends_no_message(running: Running) -> None:
    first = await running.node("same")
    await first.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await first.drop()
    await running.event(EventType.ADAPTER_DISCONNECTED)
    second = await running.node("same")
    running.responder.release["m1"].set()
    assert (await second.outcome_of("m1"))["full_text"] == "partly done"


async def test_unregistering_cancels_what_nobody_will_see(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    await peer.send("unregister")
    assert await peer.close_code() == 1000
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert event.data["reason"] == "the node unregistered"


async def test_a_stop_lets_messages_end_and_takes_no_new_ones(running: Running) -> None:
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    running.daemon.request_stop()
    await peer.ask("late")
    assert (await peer.outcome_of("late"))["code"] == "shutting_down"
    running.responder.release["m1"].set()
    assert (await peer.outcome_of("m1"))["type"] == "response_end"
    assert await peer.close_code() == 1001


async def test_past_the_drain_timeout_a_stop_cancels_what_has_begun(start: Start) -> None:
    running = await start(drain_timeout=0.05)
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    running.daemon.request_stop()
    assert (await peer.outcome_of("m1"))["type"] == "cancelled"
    assert await peer.close_code() == 1001
    event = await running.event(EventType.MESSAGE_CANCELLED)
    assert event.data["by"] == "daemon"


@pytest.mark.parametrize("capabilities", [("accepted",), ("accepted", "resume")])
async def test_a_stop_begins_nothing_and_the_next_start_runs_what_waits(
    start: Start, capabilities: tuple[str, ...]
) -> None:
    before = await start(max_running=2)
    peer = await before.node(capabilities=capabilities)
    for number, channel in (("runs", "a"), ("behind", "a"), ("holds", "b"), ("slotless", "c")):
        await peer.ask(number, "hold", channel)
    while (await peer.receive()).get("request_id") != "slotless":  # `accepted`
        pass
    before.daemon.request_stop()
    before.responder.release["runs"].set()  # which makes it the turn of both that wait
    before.responder.release["holds"].set()
    ends = await peer.outcomes_of("runs", "holds")
    assert types(ends) == ["response_end", "response_end"]
    assert await peer.close_code() == 1001
    with trio.fail_after(10):
        await before.daemon.stopped.wait()
    assert sorted(before.responder.ran) == ["holds", "runs"]
    after = await start()
    again = await after.node(capabilities=capabilities)
    for number in ("behind", "slotless"):
        after.responder.release[number].set()
    ends = await again.outcomes_of("behind", "slotless")
    assert types(ends) == ["response_end", "response_end"]


async def test_what_waits_for_the_next_start_can_be_cancelled_during_the_drain(
    start: Start,
) -> None:
    running = await start()
    peer = await running.node()
    await peer.ask("runs", "hold")
    await peer.ask("waits", "hold")
    while (await peer.receive())["type"] != "status":
        pass
    running.daemon.request_stop()
    await peer.send("cancel", request_id="waits")
    assert (await peer.outcome_of("waits"))["type"] == "cancelled"
    running.responder.release["runs"].set()
    assert (await peer.outcome_of("runs"))["type"] == "response_end"
    assert await peer.close_code() == 1001


async def test_a_daemon_that_fails_leaves_what_waits_to_the_next_start(start: Start) -> None:
    before = await start()
    peer = await before.node()
    await peer.ask("runs", "hold")
    await peer.ask("waits", "hold")
    while (await peer.receive())["type"] != "status":
        pass
    before.daemon._living.cancel("as the test wants it")
    with trio.fail_after(10):
        await before.daemon.stopped.wait()
    after = await start()
    after.responder.release["waits"].set()
    again = await after.node()
    ends = await again.outcomes_of("runs", "waits")
    assert types(ends) == ["cancelled", "response_end"]


async def test_the_next_start_runs_what_had_not_begun_and_ends_what_had(start: Start) -> None:
    before = await start()
    peer = await before.node(capabilities=("accepted",))
    for n in (1, 2):
        await peer.ask(f"m{n}", "hold")
    await before.responder.begun["m1"].wait()
    while (await peer.receive())["type"] != "status":
        pass
    after = await start()  # on the same database, as if the first had been killed
    with trio.fail_after(10):
        await after.responder.begun["m2"].wait()
    assert after.responder.ran == ["m2"]
    again = await after.node(capabilities=("accepted",))
    await again.ask("m1", "hold")
    assert (await again.outcome_of("m1"))["code"] == "interrupted"
    after.responder.release["m2"].set()
    assert (await again.outcome_of("m2"))["full_text"] == "partly done"


async def test_a_duplicate_that_is_dropped_makes_it_nobody_s_turn(running: Running) -> None:
    peer = await running.node(capabilities=("accepted",))
    await peer.ask("old", "hello")
    await peer.outcome_of("old")
    for n in range(20):
        await peer.ask(f"m{n}", "hello")
        await peer.ask("old", "hello")
    for n in range(20):
        assert (await peer.outcome_of(f"m{n}"))["type"] == "response_end"
    assert sorted(running.responder.ran) == sorted(["old", *(f"m{n}" for n in range(20))])


async def test_sessions_that_fail_end_their_messages_and_serve_again(running: Running) -> None:
    async def fail() -> None:
        raise RuntimeError("as the test wants it")

    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    nursery = running.daemon.turns._nursery
    assert nursery is not None
    nursery.start_soon(fail)
    assert (await peer.outcome_of("m1"))["type"] == "cancelled"
    await peer.ask("m2", "hello")
    while (await peer.outcome_of("m2")).get("code") == "shutting_down":
        await peer.ask("m2", "hello")
    assert running.responder.ran == ["m1", "m2"]


async def test_a_full_disk_refuses_with_a_reason_and_heals(running: Running) -> None:
    async def limit(pages: int) -> None:
        pragma = f"PRAGMA max_page_count = {pages}"
        await running.daemon.writer.call(lambda database: database.exec_driver_sql(pragma).scalar())

    peer = await running.node(capabilities=("accepted",))
    await limit(20)
    await peer.ask("m1", "x" * 500_000)
    refused = await peer.outcome_of("m1")
    assert (refused["code"], refused["recoverable"]) == ("processing_error", True)
    assert running.responder.ran == []
    await limit(1_000_000)
    await peer.ask("m1", "x" * 500_000)
    assert types(await peer.frames_of("m1"))[:1] == ["accepted"]
    assert running.responder.ran == ["m1"]


async def test_everybody_who_waits_for_the_last_message_is_told(running: Running) -> None:
    peer = await running.node()
    for number in ("first", "second"):
        await peer.ask(number, "hold")
        await running.responder.begun[number].wait()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.daemon.turns.drained)
                nursery.start_soon(running.daemon.turns.drained)
                await trio.testing.wait_all_tasks_blocked()
                running.responder.release[number].set()
