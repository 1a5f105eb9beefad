"""The nodes that the gateway knows: registered, replaced, away, forgotten."""

import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from clarad.delivery.node import Node, Sink
from clarad.delivery.replay import shared
from clarad.protocol import Capability
from clarad.store import KEPT_FOR, NodeSession

MAX_AWAY: Final = 1000
"""Nodes without a connection whose sessions are remembered; of more, the oldest are forgotten."""


class Nodes:
    """All nodes that a connection or a message in flight refers to, and those that may resume."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakValueDictionary[tuple[str, str], Node] = (
            weakref.WeakValueDictionary()
        )
        self._away: OrderedDict[tuple[str, str], Node] = OrderedDict()
        self._last_seq = 0
        self._budget = shared()

    def restore(self, sessions: Iterable[NodeSession], last_seq: int) -> None:
        """Restore the sessions of an earlier run of the daemon, oldest first.

        `last_seq` is the highest number that a frame of any node may have had.
        """
        self._last_seq = last_seq
        for session in sessions:
            node = self.find(session.node_id, session.platform)
            node.session_id = session.session_id
            node.resumes = True
            node.disconnected_at = time.monotonic() - session.away
            self._keep(node)

    @property
    def connected(self) -> int:
        """The number of nodes that are connected."""
        return sum(node.sink is not None for node in self._nodes.values())

    def connect(
        self,
        node_id: str,
        platform: str,
        capabilities: frozenset[str],
        sink: Sink,
        caused_by: Sequence[str] = (),
        session_id: str | None = None,
        last_seq: int | None = None,
    ) -> tuple[Node, int | None]:
        """Register a node on a connection; one that it had before is closed with 4000.

        Returns:
            The node, which has to be caught up, and the number of the last frame that has arrived,
            `None` if this is a new session.
        """
        node = self.find(node_id, platform)
        self._away.pop((platform, node_id), None)
        if node.sink is None and _is_stale(node):
            node.end_session()
        resumed = (
            node.resumes
            and Capability.RESUME in capabilities
            and secrets.compare_digest(node.session_id.encode(), (session_id or "").encode())
        )
        node.connect(sink, capabilities)
        node.caused_by = tuple(caused_by)
        if resumed:
            return node, node.resume(last_seq or 0)
        node.begin_session()
        return node, None

    def known(self, node_id: str, platform: str) -> Node | None:
        """Return the node of this id, if there is one."""
        return self._nodes.get((platform, node_id))

    def evict(self, node_id: str, platform: str, after_seq: int) -> None:
        """Evict a node that has registered with another daemon."""
        node = self.known(node_id, platform)
        if node is not None and 0 < node.after_seq < after_seq:
            self._away.pop((platform, node_id), None)
            node.evict()

    def numbered_here(self) -> dict[tuple[str, str], int]:
        """Return the `after_seq` of each node that this daemon has."""
        return {key: node.after_seq for key, node in self._nodes.items() if node.after_seq}

    def fetch_missed(self) -> None:
        """Send each connected node what other daemons have stored for it."""
        for node in list(self._nodes.values()):
            if node.sink is not None:
                node.sink.fetch_missed()

    def disconnect(self, node: Node, sink: Sink) -> bool:
        """Forget the connection; return `False` if the node has another one by now."""
        if node.sink is not sink:
            return False
        node.disconnect()
        if node.resumes and not node.unregistered:
            self._keep(node)
        return True

    def forget(self, node: Node) -> None:
        """Forget a node that has unregistered."""
        node.unregistered = True
        node.end_session()
        self._remember_numbers(node)
        self._nodes.pop((node.platform, node.id), None)

    def find(self, node_id: str, platform: str) -> Node:
        """Return the node of this id, a new one if there is none."""
        node = self._nodes.get((platform, node_id))
        if node is None:
            node = self._nodes[platform, node_id] = Node(
                node_id, platform, self._budget, self._last_seq
            )
        return node

    def _keep(self, node: Node) -> None:
        self._away[node.platform, node.id] = node
        while len(self._away) > MAX_AWAY or _is_stale(next(iter(self._away.values()))):
            _, oldest = self._away.popitem(last=False)
            self._remember_numbers(oldest)
            oldest.end_session()

    def _remember_numbers(self, node: Node) -> None:
        # Should it come back as new, its numbers have to go on above those in the store.
        self._last_seq = max(self._last_seq, node.replay.last)


def _is_stale(node: Node) -> bool:
    return time.monotonic() - node.disconnected_at > KEPT_FOR.total_seconds()
