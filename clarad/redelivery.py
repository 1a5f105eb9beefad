"""What nodes have missed, and how their next connections are given it (docs/protocol.md, 5)."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from clarad.nodes import Node, Outlet
from clarad.store import Messages, Missed, MissedFrame, NodeSessions, StoreError

log = logging.getLogger(__name__)

STORE_RETRY: Final = 1.0
"""Seconds between attempts to read what a node has missed."""

EVERY: Final = 2**62
"""Above all numbers that there are."""


class Redelivery:
    """Keeps the store's account of what has arrived, and reads from it what has not."""

    def __init__(self, messages: Messages, missed: Missed, sessions: NodeSessions) -> None:
        self._messages = messages
        self._missed = missed
        self._sessions = sessions

    def connected(self, node: Node, arrived: int | None) -> None:
        """Note who has registered; `arrived` is the last frame's number in a resumed session."""
        if node.resumes:
            self._sessions.save(node.platform, node.id, node.session_id)
        if arrived is not None:
            self._missed.arrived(node.platform, node.id, arrived)

    def disconnected(self, node: Node) -> None:
        """Note that a node is lost."""
        if node.resumes and not node.unregistered:
            self._sessions.leave(node.platform, node.id)

    def ack(self, node: Node, seq: int) -> None:
        """Keep nothing up to this number."""
        if node.resumes:
            self._missed.arrived(node.platform, node.id, node.ack(seq))

    def forget(self, node: Node) -> None:
        """Keep nothing for a node that is gone for good."""
        self._missed.forget(node.platform, node.id)
        self._sessions.forget(node.platform, node.id)

    async def catch_up(self, node: Node, outlet: Outlet, arrived: int | None) -> None:
        """Give a connection what its node has missed, a page at a time, the oldest first.

        Returns when it has been given everything, or is not the node's any more.
        """
        after = arrived or 0
        while node.outlet is outlet:
            before = node.window.first if node.resumes else EVERY
            node.missed_more = False
            try:
                page = await self._missed.page(node.platform, node.id, after=after, before=before)
            except StoreError as error:
                log.error("what %r has missed cannot be read: %s", node.id, error)
                await trio.sleep(STORE_RETRY)
                continue
            page = [missed for missed in page if not node.has_had(missed.key)]
            if node.outlet is not outlet:
                return
            if page:
                after = await self._give(node, outlet, page, after)
            elif not node.missed_more and (not node.resumes or node.window.first == before):
                node.catch_up()
                return

    async def _give(
        self, node: Node, outlet: Outlet, page: Sequence[MissedFrame], after: int
    ) -> int:
        """Send these frames and wait until they are written; return the last one's number."""
        for key, terminal, seq in page:
            if node.resumes and seq is not None:
                node.give_numbered(key, terminal.encode(), seq)
                after = seq
            else:
                node.give(key, terminal.encode(), partial(self._messages.delivered, key))
        written = trio.Event()
        outlet.when_written(written.set)
        await written.wait()
        return after
