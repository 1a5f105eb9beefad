"""The whole daemon on either database: what it accepts it answers, and what it was left it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clarad.events import EventType
from tests.conftest import Start
from tests.postgres import BACKENDS, database


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of the test's own."""
    with database(request.param, tmp_path, request.config) as made:
        yield made


async def test_messages_are_answered_and_sent_again_they_are_not(start: Start, url: str) -> None:
    running = await start(database_url=url)
    peer = await running.node(capabilities=("accepted",))
    names = [f"m{n}" for n in range(50)]
    for name in names:
        await peer.ask(name, "hello", channel=name)
    for outcome in await peer.outcomes_of(*names):
        assert outcome["full_text"] == "hello"
    await peer.ask("m0", "hello", channel="m0")
    assert (await peer.expect("accepted"))["duplicate"] is True
    assert sorted(running.responder.ran) == sorted(names)


# On PostgreSQL it may live still: tests/test_cluster.py.
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_what_an_earlier_daemon_left_is_run_or_ended(start: Start, url: str) -> None:
    before = await start(database_url=url)
    peer = await before.node()
    await peer.ask("begun", "hold")
    await before.responder.begun["begun"].wait()
    await peer.ask("waiting", "hold")
    while (await peer.receive())["type"] != "status":
        pass
    after = await start(database_url=url)  # as if the first had been killed
    with trio.fail_after(10):
        await after.responder.begun["waiting"].wait()
    assert after.responder.ran == ["waiting"]


async def test_text_of_every_kind_comes_back_as_it_was(start: Start, url: str) -> None:
    running = await start(database_url=url)
    first = await running.node("same")
    text = "NUL \x00, a crab 🦀, a quote ' and \" and \\, a line\nand {json}"
    await first.ask("m1", text)
    await first.outcome_of("m1")
    second = await running.node("same")
    await second.ask("m1", text)
    assert (await second.outcome_of("m1"))["full_text"] == text


async def test_what_was_missed_comes_from_the_next_daemon(start: Start, url: str) -> None:
    wanted = ("accepted", "resume")
    before = await start(database_url=url)
    plain, peer = await before.node("plain"), await before.connect()
    session_id = (await peer.register("resumes", wanted))["session_id"]
    await peer.ask("m1", "hello")
    frames = await peer.frames_of("m1")
    await plain.ask("m2", "hold")
    await before.responder.begun["m2"].wait()
    await plain.drop()
    before.responder.release["m2"].set()
    while (await before.event(EventType.MESSAGE_SENT)).request_id != "m2":
        pass
    after = await start(database_url=url)  # as if the first had been killed
    again = await after.connect()
    last_seq = frames[0]["seq"]
    registered = await again.register("resumes", wanted, session_id=session_id, last_seq=last_seq)
    assert registered["resumed"] is True
    assert await again.receive() == frames[-1]
    plain = await after.node("plain")
    assert (await plain.outcome_of("m2"))["full_text"] == "partly done"
