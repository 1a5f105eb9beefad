"""Daemons that share a database, as far as their stores can tell them apart."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from sqlalchemy import Engine

from clarad.store import Epoch, Notice, Writer
from clarad.store.cluster.membership import Membership
from clarad.store.cluster.messages import ClusterMessages
from clarad.store.cluster.nodes import ClusterNodeSessions
from tests.answer import answer
from tests.store.desk import Desk, key


class Daemon(Membership):
    """A life on the database, with a writer, and with an ear for what the others say."""

    def __init__(self, engine: Engine, instance: str) -> None:
        super().__init__(engine, Epoch(), instance=instance, claimant=instance, lease=60)
        self.writer = Writer(engine, self.epoch)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Join the others, and serve."""
        self.connect()
        self.join()
        assert self.epoch.id is not None
        self.epoch.owners = frozenset({self.epoch.id})
        await nursery.start(self.writer.run)

    @property
    def number(self) -> int:
        assert self.epoch.id is not None
        return self.epoch.id

    def said(self) -> list[Notice]:
        """Return what was said since, by whomever."""
        self.heartbeat()  # what has been committed has been heard when this is answered
        return self.receive()

    def heartbeat(self) -> None:
        self.renew(address="", tasks="", adopted=())


ABOUT: dict[str, Any] = {
    "node_id": "node-1",
    "user_id": "test-u",
    "session_id": "session-1",
    "frame": "{}",
}
STATES = """\
SELECT request_id, CASE WHEN ended_at IS NOT NULL THEN 'ended'
WHEN begun_at IS NOT NULL THEN 'begun' ELSE 'waits' END FROM clarad_messages ORDER BY request_id"""

ENDING: dict[str, Any] = {
    "outcome": "completed",
    "reason": None,
    "terminal": "{}",
    "node_id": "node-1",
    "wanted": True,
}

Share = Callable[[int], Awaitable[list[Daemon]]]
"""Has so many daemons share the test's database."""


class SharedDesk(Desk):
    """The messages of one of several daemons, all in one channel unless it is said otherwise."""

    messages: ClusterMessages

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(ClusterMessages(daemon.writer), daemon.writer)
        self.daemon = daemon

    async def admit(self, number: int, *, most: int | None = None) -> tuple[bool, list[int]]:
        """Accept a message that would begin at once; return how many were before it, too."""
        ahead: list[int] = []
        is_new = await self.accepted(
            key(number), begun=True, queued=ahead.append, most=most, **ABOUT
        )
        return is_new, ahead

    async def have_node(self) -> None:
        """Have the node register here."""
        sessions = ClusterNodeSessions(self.writer)
        await sessions.acquire("test", "node-1", resumes=True, is_known=False)

    async def end_for_node(self, number: int, *, seq: int | None = None, **about: bool) -> None:
        await answer(partial(self.messages.end, key(number), **ENDING | about, seq=seq))

    async def cancel(
        self, number: int, node_id: str = "node-1", reason: str = "why", platform: str = "test"
    ) -> bool:
        about = (platform, node_id, f"{number}", reason)
        found: bool = await answer(partial(self.messages.cancel, *about))
        return found
