"""Dedupe: a message that is sent again is answered, not run again (docs/protocol.md, 4)."""

import logging

from clarad import protocol
from clarad.delivery.node import Node
from clarad.messages import stored_frames
from clarad.messages.admission import queue_full
from clarad.messages.lifecycle import State
from clarad.messages.turn import Turn
from clarad.protocol import Error, ErrorCode
from clarad.store import ChannelFull, InDoubt, MessageKey, Messages, StoreError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Deduplicator:
    """Answers messages that were accepted before."""

    def __init__(self, store: Messages) -> None:
        self._store = store

    def answer_live(self, turn: Turn, node: Node, message: protocol.Message) -> None:
        """Answer a message that is sent again while it is in flight."""
        if turn.message.content != message.content:
            _refuse_reuse(node, message.id)
        elif turn.lifecycle.state in (State.RECEIVED, State.DOOMED):
            turn.resent_by.append(node)
            if node is turn.node:
                turn.received_on = node.sink
        else:
            send_duplicate(node, message.id)

    async def answer_stored(self, turn: Turn) -> None:
        """Answer a message that the store has already, with the terminal frame if it was missed."""
        node, request_id = turn.node, turn.message.id
        try:
            stored = await self._store.find(turn.key)
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(**turn.log_fields())
            log.error("the answer to %r cannot be read: %s", request_id, error, extra=about)
            why = "The answer could not be read; send the message again later."
            node.refuse(turn.received_on, Error(ErrorCode.PROCESSING_ERROR, why, True, request_id))
            return
        if stored is None:  # it has been deleted since
            why = "The answer is not kept any more; send the message again to have it run anew."
            node.refuse(turn.received_on, Error(ErrorCode.PROCESSING_ERROR, why, True, request_id))
            return
        if turn.received_on is not node.sink:
            return  # on its new connection the node sends it again, if it still has to
        if _content(stored.frame, turn.key) not in (None, turn.message.content):
            _refuse_reuse(node, request_id)
            return
        send_duplicate(node, request_id)
        if stored.terminal is None:
            return  # it lives, with another daemon, or is not read back yet
        # What is owed to the node was given to its connection, or is about to be.
        if stored.owed_to != node.id and not node.was_sent(turn.key):
            node.resend(turn.key, stored.terminal.encode())


def _content(frame: str, key: MessageKey) -> str | None:
    try:
        return stored_frames.read(frame, key).content
    except stored_frames.Unreadable:
        return None


def send_duplicate(node: Node, request_id: str) -> None:
    """Send `accepted` with `duplicate`."""
    if node.wants_accepted:
        node.send(protocol.Accepted(request_id=request_id, duplicate=True))


def refuse_unstored(turn: Turn, error: StoreError) -> None:
    """Refuse a message that could not be stored."""
    request_id = turn.message.id
    if isinstance(error, InDoubt):
        return  # the daemon ends; the node sends it again, and finds out
    if isinstance(error, ChannelFull):
        turn.node.refuse(turn.received_on, queue_full(request_id, str(error)))
        return
    about = catalogue.STORE_FAILED.about(**turn.log_fields())
    log.error("message %r is not accepted, the store failed: %s", request_id, error, extra=about)
    why = "The message could not be stored; send it again later."
    turn.node.refuse(turn.received_on, Error(ErrorCode.PROCESSING_ERROR, why, True, request_id))


def _refuse_reuse(node: Node, request_id: str) -> None:
    why = "This id belongs to an earlier message of this channel; use a new one."
    node.send_error(request_id, ErrorCode.INVALID_MESSAGE, why, recoverable=False)
