"""Messages on a migrated database, and what tests do with them again and again."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from sqlalchemy import Connection, Engine

from clarad.store import MessageKey, Messages, Unfinished, Writer
from tests.answer import answer
from tests.migrated import migrate

PRIVATE = "a private word"
"""Stands in every message; no error may show it."""

FAIL_SAFE = 10
"""Seconds after which a thread that a test holds up goes on, should the test have failed."""


@dataclass
class Desk:
    """Messages on a migrated database, and what tests do with them again and again."""

    messages: Messages
    writer: Writer

    async def accept(
        self, number: object, *, begun: bool = False, frame: str = PRIVATE, **changed: Any
    ) -> bool:
        about = {"node_id": "node-1", "user_id": "test-u", "session_id": "session-1"} | changed
        return await self.accepted(key(number), **about, frame=frame, begun=begun)

    async def accepted(self, which: MessageKey, **about: Any) -> bool:
        """Have a message accepted, and wait for the answer."""
        new: bool = await answer(partial(self.messages.accept, which, **about))
        return new

    async def end(
        self,
        number: object,
        outcome: str = "completed",
        reason: str | None = None,
        terminal: str = "{}",
        *,
        seq: int | None = None,
        wanted: bool = True,
    ) -> None:
        about: dict[str, Any] = {
            "outcome": outcome,
            "reason": reason,
            "terminal": terminal,
            "seq": seq,
            "wanted": wanted,
        }
        await answer(partial(self.messages.end, key(number), **about))

    async def owed_to(self, number: object) -> str | None:
        stored = await self.messages.find(key(number))
        assert stored is not None
        return stored.owed_to

    async def unfinished(self) -> list[str]:
        """Return the ids of all that is unfinished, read a page at a time."""
        found: list[Unfinished] = []
        while page := await self.messages.unfinished(found[-1].number if found else 0):
            found += page
        return [entry.key.request_id for entry in found]

    async def in_thread(self, function: Callable[[Connection], object]) -> None:
        """Run a function on the writer's own connection."""
        await self.writer.call(function)


def key(number: object) -> MessageKey:
    return MessageKey("test", "channel-1", f"{number}")


async def open_desk(engine: Engine, nursery: trio.Nursery) -> Desk:
    migrate(engine)
    writer = Writer(engine)
    await nursery.start(writer.run)
    return Desk(Messages(writer), writer)


@asynccontextmanager
async def queueing_up(writer: Writer) -> AsyncIterator[None]:
    """Have the thread stand still: what is asked for here is one transaction afterwards."""
    still, go_on = threading.Event(), threading.Event()

    def stand_still(_connection: Connection) -> None:
        still.set()
        go_on.wait(FAIL_SAFE)

    writer.submit(stand_still)
    await trio.to_thread.run_sync(still.wait, FAIL_SAFE)
    try:
        yield
    finally:
        go_on.set()
