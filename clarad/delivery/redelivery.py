"""Redelivery: a node's next connection gets what it has missed (docs/protocol.md, 5)."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from clarad.delivery.node import Node, Sink
from clarad.delivery.registry import Nodes
from clarad.store import MessageKey, Messages, Missed, MissedFrame, NodeSessions, StoreError
from clarad.store.cluster.nodes import ClusterNodeSessions
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

STORE_RETRY: Final = 1.0
"""Seconds between attempts to read what a node has missed."""

EVERY: Final = 2**62
"""Above every `seq`."""


class Redelivery:
    """Stores what has arrived at nodes, and sends them what has not."""

    def __init__(self, messages: Messages, missed: Missed, sessions: NodeSessions) -> None:
        self._messages = messages
        self._missed = missed
        self._sessions = sessions

    @property
    def is_shared(self) -> bool:
        """Whether other daemons share the database."""
        return self._sessions.is_shared

    async def adopt(
        self, nodes: Nodes, node_id: str, platform: str, *, resumes: bool
    ) -> Node | None:
        """Adopt a node that registers from the daemon that had it, if there are several.

        Returns the node. Keep a reference until it is connected: the registry holds a weak one.

        Raises:
            StoreError: the store failed.
        """
        if not isinstance(self._sessions, ClusterNodeSessions):
            return None
        node = nodes.find(node_id, platform)
        is_known = node.after_seq > 0
        taken = await self._sessions.acquire(platform, node_id, resumes=resumes, is_known=is_known)
        if taken is not None:
            node.adopt(*taken)
        return node

    def connected(self, node: Node, arrived: int | None) -> None:
        """Store that a node has registered; `arrived` is the `last_seq` of a resumed session."""
        if node.resumes:
            self._sessions.save(node.platform, node.id, node.session_id)
        if arrived is not None:
            self._missed.arrived(node.platform, node.id, arrived)

    def disconnected(self, node: Node) -> None:
        """Store that a node has lost its connection."""
        if node.resumes and not node.unregistered:
            self._sessions.mark_lost(node.platform, node.id)

    def ack(self, node: Node, seq: int) -> None:
        """Drop the frames up to this number, and store that they have arrived."""
        if node.resumes and (arrived := node.ack(seq)) is not None:
            self._missed.arrived(node.platform, node.id, arrived)

    def forget(self, node: Node) -> None:
        """Drop everything of a node that has unregistered."""
        self._missed.forget(node.platform, node.id)
        self._sessions.forget(node.platform, node.id)

    async def catch_up(self, node: Node, sink: Sink, arrived: int | None) -> None:
        """Send a connection what its node has missed, oldest first, in pages from the store.

        Returns when the connection is caught up, or when the node has another one.
        """
        after = arrived or 0
        # The store has the frames below the replay buffer. While a page is read and written, the
        # buffer may drop its oldest frames, and a message may end whose terminal frame is not in
        # the buffer. So go on until a page is empty and neither has happened: from there to
        # `node.catch_up` there is no checkpoint, and nothing can be missed.
        while node.sink is sink:
            before = node.replay.first if node.resumes else EVERY
            node.has_missed_more = False
            try:
                page = await self._missed.page(node.platform, node.id, after=after, before=before)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about(node_id=node.id)
                log.error("what %r has missed cannot be read: %s", node.id, error, extra=about)
                await trio.sleep(STORE_RETRY)
                continue
            page = [missed for missed in page if not node.was_sent(missed.key)]
            if node.sink is not sink:
                return
            if page:
                after = await self._give(node, sink, page, after)
            elif not node.has_missed_more and (not node.resumes or node.replay.first == before):
                node.catch_up()
                return

    async def fetch_missed(self, node: Node, sink: Sink) -> None:
        """Send a connection what other daemons have stored for its node meanwhile."""
        node.has_missed_more = True  # for one that is still being caught up
        while node.sink is sink and node.caught_up:
            before = node.after_seq + 1 if node.resumes else EVERY
            try:
                page = await self._missed.page(node.platform, node.id, after=0, before=before)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about(node_id=node.id)
                log.error("what %r has missed cannot be read: %s", node.id, error, extra=about)
                await trio.sleep(STORE_RETRY)
                continue
            page = [missed for missed in page if not node.was_sent(missed.key)]
            if not page or node.sink is not sink:
                return
            for key, terminal, _ in page:
                if node.resumes:
                    self._number(node, key, terminal.encode())
                else:
                    node.send_terminal(
                        key, terminal.encode(), partial(self._messages.delivered, key)
                    )

    def _number(self, node: Node, key: MessageKey, terminal: bytes) -> None:
        """Number a frame that another daemon has stored, store the number, then send it."""
        place = node.reserve(key)
        node.note_sent(key)
        if place is None:
            return

        def numbered(error: StoreError | None) -> None:
            if error is None:
                node.deliver(key, terminal, place, partial(self._messages.delivered, key))
            else:  # the next connection finds it again
                about = catalogue.STORE_FAILED.about(node_id=node.id)
                text = "an answer for %r waits, the store failed: %s"
                log.error(text, node.id, error, extra=about)
                node.withdraw(place)

        self._missed.number(key, place.seq, numbered)

    async def _give(self, node: Node, sink: Sink, page: Sequence[MissedFrame], after: int) -> int:
        """Send these frames and wait until they are written; return the last number."""
        for key, terminal, seq in page:
            if node.resumes and seq is not None:
                node.send_numbered(key, terminal.encode(), seq)
                after = seq
            elif node.resumes and self.is_shared:
                self._number(node, key, terminal.encode())
            else:
                node.send_terminal(key, terminal.encode(), partial(self._messages.delivered, key))
        written = trio.Event()
        sink.when_written(written.set)
        await written.wait()
        return after
