"""Messages that were accepted and have not ended, with no daemon that has them: read back in pages.

They are what an earlier life of this daemon has left, or another daemon that it has taken over
from. New messages are served meanwhile. Memory is bounded: a page is read when there is room for
it.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Final

import trio

from clarad.endings import STORE_RETRY
from clarad.nodes import Node
from clarad.store import Messages, StoreError, Unfinished
from clarad.systemd import catalogue
from clarad.turn import Turn

log = logging.getLogger(__name__)

MAX_LIVING: Final = 500
MAX_BYTES: Final = 64 * 1024 * 1024
"""Messages that were read back and live, and bytes of theirs, with which no other page is read."""


class Recovery:
    """Reads back what was left, and knows what of it is still unread."""

    def __init__(self, store: Messages, enter: Callable[[Unfinished], None]) -> None:
        """`enter` goes on with one message; it is called in the order of their numbers."""
        self._store = store
        self._enter = enter
        self._unread: Counter[tuple[str, str]] = Counter()
        self._cancelled: dict[tuple[str, str, str], str] = {}
        self._inherited: deque[Collection[int]] = deque()
        self._has_inherited = trio.Event()
        self._living = self._bytes = 0
        self._left = trio.Event()
        self.has_read = False
        """Whether all that was there at the start is read."""

    async def look(self) -> int:
        """Count what is there; return the highest number. To be called before messages come.

        Raises:
            StoreError: the store failed.
        """
        last, self._unread = await self._store.backlog()
        self.has_read = False
        return last

    async def run(self, last: int) -> None:
        """Read all up to this number, and then what is inherited, until cancelled."""
        self._inherited.clear()  # it is among all
        await self._read(self._store.owners, last)
        self.has_read = True
        self._unread.clear()
        self._cancelled.clear()
        while True:
            while self._inherited:
                await self._read(self._inherited.popleft())
            self._has_inherited = trio.Event()
            await self._has_inherited.wait()

    def inherit(self, lives: Collection[int]) -> None:
        """Read what these lives have left, as soon as what came before is read."""
        self._inherited.append(lives)
        self._has_inherited.set()

    async def _read(self, lives: Collection[int] | None, last: int | None = None) -> None:
        after = 0
        while True:
            while self._living > MAX_LIVING or self._bytes > MAX_BYTES:
                self._left = trio.Event()
                await self._left.wait()
            try:
                page = await self._store.unfinished(after, lives, last)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("what was left unfinished cannot be read: %s", error, extra=about)
                await trio.sleep(STORE_RETRY)
                continue
            if not page:
                return
            for entry in page:
                # New messages are not to wait for the whole page.
                await trio.lowlevel.checkpoint()
                if not self.has_read:
                    self._unread[entry.key.platform, entry.node_id] -= 1
                self._enter(entry)
            after = page[-1].number

    # --- what is unread --------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many messages are unread."""
        return sum(self._unread.values())

    def count_of(self, node: Node) -> int:
        """Return how many of the node's messages are unread."""
        return self._unread[node.platform, node.id]

    def cancel(self, node: Node, request_id: str, reason: str) -> None:
        """Have what may be unread of this node with this id cancelled as soon as it is read."""
        if not self.has_read:
            self._cancelled[node.platform, node.id, request_id] = reason

    def forget_cancel(self, node: Node, request_id: str) -> None:
        """Take that back: there is no such message."""
        self._cancelled.pop((node.platform, node.id, request_id), None)

    def cancel_reason(self, entry: Unfinished) -> str | None:
        """Return why the message is to be cancelled, if it is."""
        known = self._cancelled.get((entry.key.platform, entry.node_id, entry.key.request_id))
        return entry.cancel_reason if known is None else known

    # --- what is read, and lives -----------------------------------------------------------------

    def add(self, turn: Turn) -> None:
        """Count a message that was read back, until `remove`."""
        self._living += 1
        self._bytes += turn.size

    def remove(self, turn: Turn) -> None:
        """Count it no more."""
        self._living -= 1
        self._bytes -= turn.size
        self._left.set()
