"""The adapters that the gateway knows, each as a node: where frames for it are to go.

A message belongs to a node, not to a connection: its frames take whatever connection the node has
at the time.
"""

import secrets
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from clarad.protocol import Capability, CloseCode, encode
from clarad.store import MessageKey

REMEMBERED: Final = 1000
"""Terminal frames of one connection that are remembered as delivered."""


class Outlet(Protocol):
    """A connection, as a node sees it."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; never blocks."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Close after what is queued."""


class Node:
    """One adapter, by the id that it chose. `platform` is what it said at its last `register`."""

    def __init__(self, node_id: str, platform: str) -> None:
        self.id = node_id
        self.platform = platform
        self.session_id = ""
        self.caused_by: tuple[str, ...] = ()
        self.streaming = False
        self.told_accepted = False
        self.outlet: Outlet | None = None
        self._had: OrderedDict[MessageKey, None] = OrderedDict()

    def connect(self, outlet: Outlet) -> None:
        """Take a new connection; what it had before is closed."""
        if self.outlet is not None:
            self.outlet.end(CloseCode.REPLACED, "the node registered on another connection")
        self.outlet = outlet
        self._had.clear()

    def deliver(self, key: MessageKey, terminal: bytes) -> None:
        """Send a terminal frame, and remember on which connection."""
        if self.outlet is not None:
            self.outlet.send(terminal)
            self._had[key] = None
            if len(self._had) > REMEMBERED:
                self._had.popitem(last=False)

    def has_had(self, key: MessageKey) -> bool:
        """Whether the connection that the node has now was given this message's terminal frame."""
        return key in self._had

    def send(self, frame: Struct | bytes) -> None:
        """Send a frame if the node is connected. Never blocks."""
        if self.outlet is not None:
            self.outlet.send(frame if isinstance(frame, bytes) else encode(frame))


class Nodes:
    """All nodes that a connection or a living message refers to; the others are forgotten."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakValueDictionary[str, Node] = weakref.WeakValueDictionary()

    def connect(
        self,
        node_id: str,
        platform: str,
        capabilities: frozenset[str],
        outlet: Outlet,
        caused_by: Sequence[str] = (),
    ) -> Node:
        """Register a node on a connection; one that it had before is closed with 4000."""
        node = self.find(node_id, platform)
        node.connect(outlet)
        node.platform = platform
        node.caused_by = tuple(caused_by)
        node.session_id = f"node-{secrets.token_hex(16)}"
        node.streaming = Capability.STREAMING in capabilities
        node.told_accepted = Capability.ACCEPTED in capabilities
        return node

    def disconnect(self, node: Node, outlet: Outlet) -> None:
        """Forget the connection, unless the node has another one by now."""
        if node.outlet is outlet:
            node.outlet = None

    def find(self, node_id: str, platform: str) -> Node:
        """Return the node of this id, a new one if there is none."""
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = Node(node_id, platform)
        return node
