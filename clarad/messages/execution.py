"""Runs the responder for a message whose turn it is, in one of the slots."""

import logging
from functools import partial

import trio

from clarad.delivery.node import Node
from clarad.limits.concurrency import Slots
from clarad.messages.cluster import SharedChannels
from clarad.messages.completion import STORE_RETRY
from clarad.messages.lifecycle import Signal
from clarad.messages.turn import Turn
from clarad.protocol import ErrorCode
from clarad.responders import NoSandboxError, Request, Responder, ResponderError
from clarad.store import Messages, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Executor:
    """Runs the responder, for as many messages at once as there are slots."""

    def __init__(
        self,
        responder: Responder,
        store: Messages,
        shared_channels: SharedChannels,
        slots: Slots[Node],
        timeout: float,
    ) -> None:
        """`timeout` is how long an answer may take, in seconds."""
        self.timeout = timeout
        self.slots = slots
        self._responder = responder
        self._store = store
        self._shared_channels = shared_channels

    def acquire_slot_nowait(self, turn: Turn) -> bool:
        """Acquire a slot if the message may have one at once; return whether it has."""
        turn.has_slot = self.slots.acquire_nowait(turn.node)
        return turn.has_slot

    def release_slot(self, turn: Turn) -> None:
        """Release the message's slot, if it has one."""
        if turn.has_slot:
            turn.has_slot = False
            self.slots.release(turn.node)

    async def answer(self, turn: Turn) -> None:
        """Answer the message; afterwards its outcome is decided.

        The outcome stays open if this is cancelled from above, or if `turn.waiting` is cancelled
        before the message has begun. In the latter case nothing has been done.
        """
        try:
            with turn.scope:
                await self._answer(turn)
            if turn.scope.cancelled_caught and trio.current_time() >= turn.scope.deadline:
                why = f"No answer within {self.timeout:g} s."
                turn.decide_error(Signal.TIMED_OUT, ErrorCode.TIMEOUT, why, turn.scope.deadline)
        except* Exception as group:
            _decide_error(turn, group)

    async def _answer(self, turn: Turn) -> None:
        if not turn.begun:
            with turn.waiting:
                await self._wait_to_begin(turn)
        if turn.begun and turn.begin(self.timeout):
            message, session = turn.message, turn.session
            request = Request(message, turn.node.id, turn.key.platform, session.id)
            await self._responder.respond(request, turn)
            turn.decide(Signal.COMPLETED)

    async def _wait_to_begin(self, turn: Turn) -> None:
        while not turn.begun:
            await trio.lowlevel.checkpoint_if_cancelled()  # what follows need not be one
            if not turn.has_slot:
                await self.slots.acquire(turn.node)
                turn.has_slot = True
            await self._begin(turn)

    async def _begin(self, turn: Turn) -> None:
        """Store that the message begins, if it is its turn; `turn.begun` says whether it was."""
        try:
            if turn.is_known_first:
                turn.begun = await self._store.begin(turn.key)
            else:
                # Release the slot: the message ahead may be waiting for one, here or elsewhere.
                release_slot = partial(self.release_slot, turn)
                turn.begun = await self._shared_channels.begin(turn.key, release_slot)
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(**turn.log_fields())
            text = "message %r waits, the store failed: %s"
            log.error(text, turn.message.id, error, extra=about)
            await trio.sleep(STORE_RETRY)


def _decide_error(turn: Turn, error: BaseException) -> None:
    wanted = _find(error, ResponderError)
    if wanted is None:
        about = catalogue.INTERNAL_ERROR.about(**turn.log_fields())
        log.error("message %r failed", turn.message.id, exc_info=error, extra=about)
    why = "The message failed; the daemon's log says why." if wanted is None else str(wanted)
    is_about_sandboxes = isinstance(wanted, NoSandboxError)
    code = ErrorCode.NO_SANDBOX if is_about_sandboxes else ErrorCode.PROCESSING_ERROR
    turn.decide_error(Signal.FAILED, code, why)


def _find(error: BaseException, kind: type[ResponderError]) -> ResponderError | None:
    """Return the exception of this kind, also from within the groups that nurseries make."""
    if isinstance(error, kind):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for e in error.exceptions if (found := _find(e, kind))), None)
    return None
