"""Attachments of messages: away from the rows that change, and whole again when they are needed."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine

from clarad.store.attachments import join, split
from clarad.store.unfinished import PAGE_CHARACTERS
from tests.postgres import SHARED
from tests.store.conftest import Outside
from tests.store.daemons import Share, SharedDesk
from tests.store.desk import Desk, key, queueing_up

ATTACHMENTS = [{"type": "text", "filename": "a.txt", "content": "über\u0000\n", "new": [1, {}]}]


def frame(request_id: object = "1", **fields: Any) -> str:
    about = {"id": f"{request_id}", "content": "héllo", "attachments": ATTACHMENTS, "metadata": {}}
    return json.dumps({"type": "message"} | about | fields)


async def accept(desk: Desk, number: object, **about: Any) -> bool:
    return await desk.accept(number, frame=frame(number, **about), has_attachments=True)


async def unfinished(desk: Desk) -> list[Any]:
    return [json.loads(entry.frame) for entry in await desk.messages.unfinished()]


# --- apart and together --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        frame(),
        json.dumps(json.loads(frame()), separators=(",", ":"), ensure_ascii=False),
        '{"attachments":[],"attachments":[{"filename":"the last one counts"}],"type":"message"}',
        '{"type":"message","\\u0061ttachments":[{}],"content":"\\ud83d\\ude00 \\u0000"}',
    ],
    ids=["as Python writes it", "short", "twice", "escaped"],
)
def test_a_frame_that_is_taken_apart_can_be_put_together_again(text: str) -> None:
    apart, attachments = split(text)
    assert "attachments" not in json.loads(apart)
    assert json.loads(join(apart, attachments)) == json.loads(text)


def test_when_its_attachments_have_gone_the_frame_is_what_is_left() -> None:
    apart, _ = split(frame())
    assert json.loads(join(apart, None)) == {
        name: value for name, value in json.loads(frame()).items() if name != "attachments"
    }


# --- in the store --------------------------------------------------------------------------------


async def test_attachments_are_not_in_the_row_that_changes(desk: Desk, outside: Outside) -> None:
    assert await accept(desk, 1)
    (kept,) = outside.rows("SELECT attachments FROM clarad_attachments")
    assert json.loads(kept[0]) == ATTACHMENTS
    (row,) = outside.rows("SELECT frame FROM clarad_messages")
    assert "a.txt" not in row[0]


async def test_what_is_unfinished_comes_back_with_its_attachments(desk: Desk) -> None:
    await desk.accept(1, frame='{"content":"plain"}')
    await accept(desk, 2)
    assert await unfinished(desk) == [{"content": "plain"}, json.loads(frame(2))]


async def test_attachments_count_for_the_length_of_a_page(desk: Desk) -> None:
    long = [{"content": "x" * PAGE_CHARACTERS}]
    for n in range(2):
        await accept(desk, n, attachments=long)
    assert len(await desk.messages.unfinished()) == 1
    assert await desk.unfinished() == ["0", "1"]


@pytest.mark.parametrize("ends", [False, True], ids=["unfinished", "ended"])
async def test_one_that_is_there_already_keeps_what_it_came_with(
    desk: Desk, outside: Outside, ends: bool
) -> None:
    await accept(desk, 1)
    if ends:
        await desk.end(1)
        outside.do("DELETE FROM clarad_attachments")
    before = outside.rows("SELECT * FROM clarad_attachments")
    assert not await accept(desk, 1, attachments=[{"filename": "other"}])
    assert outside.rows("SELECT * FROM clarad_attachments") == before


async def test_messages_with_and_without_attachments_stay_in_the_order_in_which_they_came(
    desk: Desk,
) -> None:
    about: dict[str, Any] = {"node_id": "n", "user_id": "u", "session_id": "s", "begun": False}
    new: list[object] = []
    async with queueing_up(desk.writer):
        for n in range(20):
            has_some = n % 3 == 1
            given = about | {"frame": frame(n), "has_attachments": has_some, "then": new.append}
            desk.messages.accept(key(n), **given)
    assert await desk.unfinished() == [f"{n}" for n in range(20)]
    assert new == [True] * 20


@pytest.mark.parametrize("url", SHARED, indirect=True)
async def test_a_daemon_that_shares_its_database_keeps_them_apart_too(
    share: Share, outside: Outside
) -> None:
    (daemon,) = await share(1)
    desk = SharedDesk(daemon)
    assert await accept(desk, 1)
    assert not await accept(desk, 1)
    assert await unfinished(desk) == [json.loads(frame(1))]
    (row,) = outside.rows("SELECT frame FROM clarad_messages")
    assert "a.txt" not in row[0]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_change_of_state_does_not_write_them_again(
    desk: Desk, engine: Engine, outside: Outside
) -> None:
    """By what SQLite's log grows by: it has each page that was written."""

    async def written_by(step: Callable[[], Any]) -> int:
        outside.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        await step()
        return os.stat(f"{engine.url.database}-wal").st_size

    long = [{"content": "x" * 1_000_000}]
    assert await written_by(partial(accept, desk, 1, attachments=long)) > 1_000_000
    assert await written_by(partial(desk.messages.begin, key(1))) < 100_000
    assert await written_by(partial(desk.end, 1)) < 100_000
