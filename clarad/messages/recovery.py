"""Recovery: reads back unfinished messages that no running daemon has, in pages.

An earlier run of this daemon has left them, or a daemon that this one has taken over from. New
messages are served meanwhile. Memory is bounded: a page is read only when there is room for it.
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
"""Recovered messages of a backlog in flight, and their bytes, above which its next page waits."""


class Backlog:
    """The unfinished messages of some epochs, and how many of them are in flight by now.

    Each backlog has a limit of its own. Under one limit for all, messages that wait for one of
    another backlog could use it up, and that one would never be read.
    """

    def __init__(self, epochs: Collection[int] | None, last: int | None = None) -> None:
        """With `last`, it is what was in the store at the start, up to this number."""
        self.epochs = epochs
        self.last = last
        self.abandoned: set[tuple[str, str]] = set()
        """Nodes that have unregistered since the current page was asked for; by platform and id."""
        self._live = self._bytes = 0
        self._left = trio.Event()

    async def wait_for_room(self) -> None:
        """Wait until there is room for another page."""
        while self._live > MAX_LIVE or self._bytes > MAX_BYTES:
            self._left = trio.Event()
            await self._left.wait()

    def add(self, size: int) -> None:
        """Count a recovered message of `size` bytes."""
        self._live += 1
        self._bytes += size

    def remove(self, size: int) -> None:
        """Count it no more: it has ended."""
        self._live -= 1
        self._bytes -= size
        self._left.set()


class Recovery:
    """Reads backlogs, and counts what is still unread."""

    def __init__(
        self,
        store: Messages,
        recover: Callable[[Unfinished, Backlog], None],
        cancel: Callable[[ToCancel], None],
    ) -> None:
        """`recover` is called with each message of a backlog, in order.

        `cancel` is called with each of those that a cancel was stored for meanwhile.
        """
        self._store = store
        self._recover = recover
        self._cancel = cancel
        self._unread: Counter[tuple[str, str]] = Counter()
        self._inherited: deque[frozenset[int]] = deque()
        self._being_read: set[Backlog] = set()
        self._has_inherited = trio.Event()
        self.has_read = False
        """Whether everything that was in the store at the start is read."""

    async def prepare(self) -> Backlog:
        """Count the unfinished messages and return them as a backlog. Call it before serving.

        Raises:
            StoreError: the store failed.
        """
        self._inherited.clear()  # it is among all; what is inherited from here on may not be
        epochs = self._store.owners
        last, self._unread = await self._store.backlog()
        self.has_read = False
        return Backlog(epochs, last)

    async def run(self, first: Backlog) -> None:
        """Read this backlog, and those inherited meanwhile beside it, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_first, first)
            while True:
                while self._inherited:
                    # A message that is read twice might end in between, and would be run again.
                    if epochs := self._inherited.popleft().difference(first.epochs or ()):
                        nursery.start_soon(self._read, Backlog(epochs))
                self._has_inherited = trio.Event()
                await self._has_inherited.wait()

    def inherit(self, epochs: Collection[int]) -> None:
        """Read what these epochs have left, beside what is being read."""
        self._inherited.append(frozenset(epochs))
        self._has_inherited.set()

    async def _read_first(self, backlog: Backlog) -> None:
        await self._read(backlog)
        self.has_read = True
        self._unread.clear()

    def abandon(self, node: Node) -> None:
        """Cancel the node's messages in pages that were asked for before it unregistered."""
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
            backlog.abandoned.clear()  # the next page says so itself
            try:
                page = await self._store.unfinished(after, backlog.epochs, backlog.last)
            except StoreError as error:
                await _wait_for_store(error)
                continue
            if not page:
                return
            for entry in page:
                # Let new messages in between: a page takes long.
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
        """Cancel the messages of a page that a cancel was stored for while it was gone through.

        A cancel that comes before the page is read is in the page; one that comes after the message
        is recovered finds it in flight. One that comes in between is found here.
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
