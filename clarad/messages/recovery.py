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

from clarad.delivery.node import Node
from clarad.messages.completion import STORE_RETRY
from clarad.store import UNREGISTERED, Messages, StoreError, ToCancel, Unfinished
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

MAX_LIVE: Final = 500
MAX_BYTES: Final = 64 * 1024 * 1024
"""Messages that a backlog has read back and that live, and bytes of theirs, with which its next
page waits."""


class Backlog:
    """What some epochs have left, and how much of it is read back and lives.

    Each has room of its own. With room for all together, messages that wait for one of another
    backlog could take all of it, and that one would never be read.
    """

    def __init__(self, epochs: Collection[int] | None, last: int | None = None) -> None:
        """With `last` it is what was there at the start, up to this number."""
        self.epochs = epochs
        self.last = last
        self.abandoned: set[tuple[str, str]] = set()
        """Nodes that have unregistered since its page was asked for; by platform and id."""
        self._live = self._bytes = 0
        self._left = trio.Event()

    async def wait_for_room(self) -> None:
        """Wait until there is room for another page."""
        while self._live > MAX_LIVE or self._bytes > MAX_BYTES:
            self._left = trio.Event()
            await self._left.wait()

    def add(self, size: int) -> None:
        """Count a message of so many bytes that was read back, until `remove`."""
        self._live += 1
        self._bytes += size

    def remove(self, size: int) -> None:
        """Count it no more."""
        self._live -= 1
        self._bytes -= size
        self._left.set()


class Recovery:
    """Reads back what was left, and knows how much of it is still unread."""

    def __init__(
        self,
        store: Messages,
        recover: Callable[[Unfinished, Backlog], None],
        cancel: Callable[[ToCancel], None],
    ) -> None:
        """`recover` goes on with one message; of a backlog, in the order of their numbers.

        `cancel` cancels one that it was called with.
        """
        self._store = store
        self._recover = recover
        self._cancel = cancel
        self._unread: Counter[tuple[str, str]] = Counter()
        self._inherited: deque[frozenset[int]] = deque()
        self._being_read: set[Backlog] = set()
        self._has_inherited = trio.Event()
        self.has_read = False
        """Whether all that was there at the start is read."""

    async def prepare(self) -> Backlog:
        """Count what is there, and return it. To be called before messages come.

        Raises:
            StoreError: the store failed.
        """
        self._inherited.clear()  # it is among all; what is inherited from here on may not be
        epochs = self._store.owners
        last, self._unread = await self._store.backlog()
        self.has_read = False
        return Backlog(epochs, last)

    async def run(self, first: Backlog) -> None:
        """Read it, and what is inherited meanwhile beside it, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_first, first)
            while True:
                while self._inherited:
                    # What is read twice may have ended between the two, and would be run again.
                    if epochs := self._inherited.popleft().difference(first.epochs or ()):
                        nursery.start_soon(self._read, Backlog(epochs))
                self._has_inherited = trio.Event()
                await self._has_inherited.wait()

    def inherit(self, epochs: Collection[int]) -> None:
        """Read what these epochs have left."""
        self._inherited.append(frozenset(epochs))
        self._has_inherited.set()

    async def _read_first(self, backlog: Backlog) -> None:
        await self._read(backlog)
        self.has_read = True
        self._unread.clear()

    def abandon(self, node: Node) -> None:
        """Have what is read of this node from here on end for nobody; the store knows by then."""
        for backlog in self._being_read:
            backlog.abandoned.add((node.platform, node.id))

    async def _read(self, backlog: Backlog) -> None:
        self._being_read.add(backlog)
        try:
            await self._read_pages(backlog)
        finally:
            self._being_read.remove(backlog)

    async def _read_pages(self, backlog: Backlog) -> None:
        after = 0
        while True:
            await backlog.wait_for_room()
            backlog.abandoned.clear()  # of those the page will say it
            try:
                page = await self._store.unfinished(after, backlog.epochs, backlog.last)
            except StoreError as error:
                await _wait_for_store(error)
                continue
            if not page:
                return
            for entry in page:
                # New messages are not to wait for the whole page.
                await trio.lowlevel.checkpoint()
                node = entry.key.platform, entry.node_id
                if backlog.last is not None:
                    self._unread[node] -= 1
                if node in backlog.abandoned:
                    entry = entry._replace(cancel_reason=UNREGISTERED, wanted=False)
                self._recover(entry, backlog)
            await self._cancel_requested(page[0].number - 1, page[-1].number)
            after = page[-1].number

    async def _cancel_requested(self, after: int, last: int) -> None:
        """Look once more at the messages of a page.

        Who asked after the page was read, and before the message was entered, has found it only in
        the store. So a cancel is seen in the page, or here, or finds the message living.
        """
        while True:
            try:
                asked = await self._store.to_cancel(after, last)
            except StoreError as error:
                await _wait_for_store(error)
                continue
            for to_cancel in asked:
                self._cancel(to_cancel)
            return

    # --- what is unread --------------------------------------------------------------------------

    def unread(self) -> int:
        """Return how many messages are unread."""
        return sum(self._unread.values())

    def unread_of(self, node: Node) -> int:
        """Return how many of the node's messages are unread."""
        return self._unread[node.platform, node.id]


async def _wait_for_store(error: StoreError) -> None:
    about = catalogue.STORE_FAILED.about()
    log.error("what was left unfinished cannot be read: %s", error, extra=about)
    await trio.sleep(STORE_RETRY)
