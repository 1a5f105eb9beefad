"""Turns and cancels while some unfinished messages are in the store only.

Another daemon on the database has them, or recovery has not read them yet.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from clarad import protocol
from clarad.delivery.node import Node
from clarad.messages.admission import AdmissionControl
from clarad.protocol import ErrorCode
from clarad.store import MessageKey, Messages, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

FIRST_POLL: Final = 0.05
MAX_POLL: Final = 1.0
"""Seconds after which a message polls the store for its turn: at first, and at most.

Notices are not enough: the message may have looked just before the one ahead of it ended, and been
inserted just after the other daemon had looked for the next one."""


class _Channel:
    """Wakes messages that are not first in their channel."""

    def __init__(self) -> None:
        self.moved = trio.Event()
        self.pause = FIRST_POLL


class SharedChannels:
    """Waits for turns and asks for cancels with the help of the store."""

    def __init__(
        self,
        store: Messages,
        admission_control: AdmissionControl,
    ) -> None:
        """`admission_control` counts what is on its way to the store."""
        self._store = store
        self._admission = admission_control
        self._channels: dict[tuple[str, str], _Channel] = {}
        self._cancelling: set[tuple[Node, str]] = set()

    async def begin(self, key: MessageKey, release_slot: Callable[[], None]) -> bool:
        """Begin the message in the store if it is first in its channel, and return `True`.

        If it is not first, call `release_slot`, wait until it may be, and return `False`.

        Raises:
            StoreError: the store failed.
        """
        channel = self._channels.setdefault(key[:2], _Channel())
        if await self._store.begin_if_first(key):
            return True
        release_slot()
        with trio.move_on_after(channel.pause):
            await channel.moved.wait()
        channel.pause = min(channel.pause * 2, MAX_POLL)
        return False

    def channel_moved(self, platform: str, channel_id: str) -> None:
        """Wake the messages of this channel: one before them has ended."""
        if (channel := self._channels.pop((platform, channel_id), None)) is not None:
            channel.moved.set()

    def cancel(self, node: Node, cancel: protocol.Cancel, *, is_here: bool = False) -> None:
        """Ask the store to cancel the node's messages with this id that are not in memory.

        It counts as uncommitted like a message. A second one meanwhile shares the first one's
        answer. With `is_here` a message in memory was cancelled, so there is no `not_found`.
        """
        if (node, cancel.request_id) not in self._cancelling:
            self._cancelling.add((node, cancel.request_id))
            self._admission.add_uncommitted(node)
            self._store.cancel(
                node.platform,
                node.id,
                cancel.request_id,
                cancel.reason or "requested",
                partial(self._cancel_stored, node, cancel.request_id, is_here),
            )

    def _cancel_stored(
        self, node: Node, request_id: str, is_here: bool, found: bool | StoreError
    ) -> None:
        """Send an error if nothing will be cancelled."""
        self._cancelling.remove((node, request_id))
        self._admission.remove_uncommitted(node)
        if isinstance(found, StoreError):
            about = catalogue.STORE_FAILED.about(node_id=node.id, request_id=request_id)
            log.error(
                "whether %r can be cancelled is not known: %s", request_id, found, extra=about
            )
            why = f"The store failed; cancel {request_id!r} again later."
            # Not with its request_id: that would be the message's terminal frame.
            node.send(protocol.Error(ErrorCode.PROCESSING_ERROR, why, recoverable=True))
        elif not (found or is_here):
            why = "No message with this id is waiting or running."
            node.send_error(request_id, ErrorCode.NOT_FOUND, why, recoverable=False)
