"""Stores how a message has ended, and only then sends its terminal frame.

In the other order, a kill between the two would have the message answered twice.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from clarad import protocol
from clarad.delivery.replay import ReplayFrame
from clarad.events import Bus
from clarad.messages.lifecycle import Signal
from clarad.messages.turn import Turn
from clarad.store import Messages, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

STORE_RETRY: Final = 1.0
"""Seconds between attempts to store how a message ended."""


class Completer:
    """Stores and sends the terminal frame of each message whose outcome is decided."""

    def __init__(
        self,
        store: Messages,
        bus: Bus,
        start_soon: Callable[..., None],
        remove: Callable[[Turn], None],
    ) -> None:
        """`start_soon` starts a task in the turns' nursery; `remove` drops an ended message."""
        self._store = store
        self._bus = bus
        self._start_soon = start_soon
        self._remove = remove
        self._given_up = trio.Event()

    def settle(self, turn: Turn) -> None:
        """Store the terminal frame, then send it. Retries while the store fails."""
        stopped_in = trio.current_time() - turn.decided_at
        self._write(turn, protocol.encode(turn.terminal()), stopped_in)

    def give_up(self) -> None:
        """Stop retrying: the next start finds unfinished messages in the store."""
        self._given_up.set()

    def _write(self, turn: Turn, terminal: bytes, stopped_in: float) -> None:
        place = turn.node.reserve(turn.key) if turn.wanted else None
        self._store.end(
            turn.key,
            outcome=turn.signal.value,
            reason=turn.reason or None,
            terminal=terminal.decode(),
            seq=None if place is None else place.seq,
            wanted=turn.wanted and not turn.node.unregistered,
            node_id=turn.node.id,
            is_here=turn.node.sink is not None,
            then=partial(self._written, turn, terminal, place, stopped_in),
            moved=turn.node.evict,
        )

    def _written(
        self,
        turn: Turn,
        terminal: bytes,
        place: ReplayFrame | None,
        stopped_in: float,
        error: StoreError | None,
    ) -> None:
        if error is not None:
            turn.node.withdraw(place)
            about = catalogue.STORE_FAILED.about(**turn.log_fields())
            text = "the answer to %r waits, the store failed: %s"
            log.error(text, turn.message.id, error, extra=about)
            self._start_soon(self._retry, turn, terminal, stopped_in)
            return
        turn.lifecycle.apply(Signal.SETTLED)
        if turn.wanted:
            turn.node.deliver(turn.key, terminal, place, partial(self._store.delivered, turn.key))
        event_type, data = turn.end_event(stopped_in)
        self._bus.publish(event_type, **turn.event_fields(), data=data)
        self._remove(turn)

    async def _retry(self, turn: Turn, terminal: bytes, stopped_in: float) -> None:
        with trio.move_on_after(STORE_RETRY, shield=True) as pause:
            await self._given_up.wait()
        if pause.cancelled_caught:
            self._write(turn, terminal, stopped_in)
        else:
            about = catalogue.STORE_FAILED.about(**turn.log_fields())
            text = "how %r ended is not stored: the daemon has to stop"
            log.error(text, turn.message.id, extra=about)
            self._remove(turn)
