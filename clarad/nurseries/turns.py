"""The nursery of the messages, from admission to the terminal frame.

A message has a task from its turn to its outcome (`clarad.messages.execution`). While others of
its channel are ahead of it, it is only an entry in the queue (`clarad.messages.inflight`). Whatever
ends it first decides its outcome (`clarad.messages.lifecycle`). The steps outside its task are
synchronous, and the store calls back when it has committed.
"""

import itertools
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import trio

from clarad import protocol
from clarad.delivery.node import Node
from clarad.delivery.registry import Nodes
from clarad.events import Bus, EventType
from clarad.limits.concurrency import Slots
from clarad.limits.rate import Rates
from clarad.messages import admission, stored_frames
from clarad.messages.admission import AdmissionControl
from clarad.messages.cluster import SharedChannels
from clarad.messages.completion import Completer
from clarad.messages.dedupe import Deduplicator, refuse_unstored, send_duplicate
from clarad.messages.execution import Executor
from clarad.messages.inflight import MAX_WAITING, InFlight
from clarad.messages.lifecycle import Signal, State
from clarad.messages.recovery import Backlog, Recovery
from clarad.messages.sessions import Sessions
from clarad.messages.turn import SessionKey, Turn, answers
from clarad.protocol import Error, ErrorCode
from clarad.responders import Responder
from clarad.store import UNREGISTERED, MessageKey, Messages, StoreError, ToCancel, Unfinished
from clarad.store.cluster.messages import ClusterMessages
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Turns:
    """Admits messages, runs each in its turn, and sends its terminal frame."""

    def __init__(
        self,
        *,
        bus: Bus,
        nodes: Nodes,
        store: Messages,
        responder: Responder,
        session_timeout: float,
        message_timeout: float,
        slots: Slots[Node],
        rates: Rates,
    ) -> None:
        """The timeouts are in seconds."""
        self._bus = bus
        self._nodes = nodes
        self._store = store
        self._nursery: trio.Nursery | None = None
        self.sessions = Sessions(bus, session_timeout)
        self._inflight = InFlight()
        self.admission = AdmissionControl(self._inflight, rates)
        self._deduplicator = Deduplicator(store)
        self._recovery = Recovery(store, self._recover, self.cancel_requested)
        self._reading = trio.CancelScope()
        self._is_shared = isinstance(store, ClusterMessages)
        self._shared_channels = SharedChannels(store, self.admission)
        self.executor = Executor(responder, store, self._shared_channels, slots, message_timeout)
        self._answers = answers()
        self._completer = Completer(store, bus, self._start_soon, self._remove)
        self._stopping = False
        self._serving = False
        self._changed = trio.Event()  # for `drained`: a message has ended, or stays queued
        boot = secrets.token_hex(4)
        self._response_ids = (f"response-{boot}-{n}" for n in itertools.count(1))
        self._started = trio.current_time()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; every message that has begun still gets its terminal frame.

        Messages that an earlier run of the daemon has left are recovered meanwhile.

        After `stop_accepting`, queued messages stay in the store for the next start. Without it,
        this has failed and the supervisor starts it again: queued messages are cancelled, because
        the new run would not find them.

        Raises:
            StoreError: what an earlier run has left cannot be read.
        """
        backlog = await self._recovery.prepare()
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._read_back, backlog)
            self._nursery.start_soon(self.sessions.run)
            self._serving = True
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._serving = False
                self.stop()
                with trio.CancelScope(shield=True):
                    await self.drained()
                    await self.sessions.end_all()

    def count(self) -> tuple[int, int, int]:
        """Return the numbers of sessions, of running and of waiting messages."""
        waiting = sum(
            not turn.has_slot and turn.lifecycle.state is State.WAITING for turn in self._inflight
        )
        waiting += self._recovery.unread()
        return len(self.sessions), self.executor.slots.in_use, waiting

    def stop_accepting(self) -> None:
        """Admit and begin no more messages. Queued ones stay in the store for the next start.

        They can still be cancelled. On PostgreSQL another daemon may run them once this one ends.
        """
        self._stopping = True
        self._reading.cancel("the daemon is stopping")
        for turn in self._inflight:
            turn.waiting.cancel("the daemon is stopping")

    async def drained(self) -> None:
        """Wait until no message is under way. Call it after `stop_accepting`."""
        while not all(map(self._stays_queued, self._inflight)):
            if self._changed.is_set():
                self._changed = trio.Event()
            await self._changed.wait()

    def stop(self) -> None:
        """Cancel the messages that are under way. Await `drained` afterwards."""
        for turn in self._inflight:
            if turn.begun or not self._stopping:
                self._cancel(turn, "the daemon is stopping", "daemon")
            elif turn.has_task:  # the store is about to say whether it has begun
                turn.scope.cancel("the daemon is stopping")

    def give_up(self) -> None:
        """Stop retrying a store that fails; the next start finds unfinished messages there."""
        self._completer.give_up()

    # --- what connections ask for ----------------------------------------------------------------

    def submit(self, node: Node, message: protocol.Message, text: str) -> None:
        """Admit, refuse or dedupe a message. All answers go to the node."""
        key = MessageKey(node.platform, message.channel.id, message.id)
        if (turn := self._inflight.find(key)) is not None:
            self._deduplicator.answer_live(turn, node, message)
        elif self._stopping or not self._serving:
            why = "The daemon is stopping; send it again later."
            node.refuse(node.sink, Error(ErrorCode.SHUTTING_DOWN, why, True, message.id))
        elif refusal := self.admission.admit(node, message, text, trio.current_time()):
            node.refuse(node.sink, refusal)
        else:
            self._admit(node, message, text)

    async def apply_backpressure(self, node: Node) -> None:
        """Wait for a moment if many of the node's messages are not committed yet."""
        await self.admission.apply_backpressure(node)

    def cancel(self, node: Node, cancel: protocol.Cancel) -> None:
        """Cancel the node's messages with this id; `not_found` if none can be cancelled."""
        reason = cancel.reason or "requested"
        turns = self._inflight.of_request(node, cancel.request_id)
        cancelled = [self._cancel(turn, reason, node.id) for turn in turns]  # each, not any
        is_here = any(cancelled)
        if (
            self._is_shared or not self._recovery.has_read
        ):  # the store may have some, in other channels
            self._shared_channels.cancel(node, cancel, is_here=is_here)
        elif not is_here:
            why = "No message with this id is waiting or running."
            node.send_error(cancel.request_id, ErrorCode.NOT_FOUND, why, recoverable=False)

    def status(self, node: Node) -> protocol.Status:
        """Count the node's messages."""
        turns = self._inflight.of_node(node)
        running = sum(turn.lifecycle.state is State.RUNNING for turn in turns)
        return protocol.Status(
            node_id=node.id,
            active_requests=running,
            queue_length=len(turns) - running + self._recovery.unread_of(node),
            uptime_seconds=self._uptime(),
        )

    def abandon(self, node: Node) -> None:
        """Cancel all messages of a node that has unregistered; the store was told already."""
        for turn in self._inflight.of_node(node):
            self._cancel(turn, UNREGISTERED, node.id)
        self._recovery.abandon(node)

    def inherit(self, epochs: Collection[int]) -> None:
        """Recover what these epochs have left."""
        self._recovery.inherit(epochs)

    def channel_moved(self, platform: str, channel_id: str) -> None:
        """Look whose turn it is: another daemon has ended a message of this channel."""
        self._shared_channels.channel_moved(platform, channel_id)

    def cancel_requested(self, asked: ToCancel) -> None:
        """Cancel a message, if it is in flight here: a cancel was stored for it."""
        if (turn := self._inflight.find(asked.key)) is not None:
            turn.wanted = turn.wanted and asked.wanted
            self._cancel(turn, asked.reason, turn.node.id)

    # --- a message's way -------------------------------------------------------------------------

    def _admit(self, node: Node, message: protocol.Message, text: str) -> None:
        """Queue the message in its channel, and store it."""
        turn = self._add(node, node.platform, message, text, State.RECEIVED)
        # With several daemons the store begins it only if none of them has a message ahead of it.
        may_begin = self._is_shared or turn.is_known_first
        turn.begun = (
            may_begin and self._inflight.is_first(turn) and self.executor.acquire_slot_nowait(turn)
        )
        self.admission.add_uncommitted(node)
        self._store.accept(
            turn.key,
            node_id=node.id,
            user_id=message.user.id,
            session_id=turn.session.id,
            frame=text,
            has_attachments=bool(message.attachments),
            begun=turn.begun,
            then=partial(self._stored, turn),
            # The store counts what is before it, unless all of that is in memory.
            queued=None if turn.is_known_first else turn.queued,
            most=MAX_WAITING,
        )

    async def _read_back(self, backlog: Backlog) -> None:
        with trio.CancelScope() as self._reading:
            if not self._stopping:
                await self._recovery.run(backlog)

    def _recover(self, entry: Unfinished, backlog: Backlog) -> None:
        """Queue a message that was left, or end it as `interrupted` if it may have acted."""
        key = entry.key
        if (here := self._inflight.find(key)) is not None:
            if here.lifecycle.state in (State.RECEIVED, State.DOOMED):
                here.found = (
                    entry,
                    backlog,
                )  # sent again: the store will say so, then `_drop` recovers it
            return
        why = ""
        try:
            message = stored_frames.read(entry.frame, key)
        except stored_frames.Unreadable as error:
            message, why = stored_frames.stand_in(key), str(error)
        node = self._nodes.find(entry.node_id, key.platform)
        # With several daemons, the store decides the order.
        number = math.inf if self._is_shared else entry.number
        turn = self._add(node, key.platform, message, entry.frame, State.WAITING, number)
        turn.backlog, turn.wanted = backlog, entry.wanted
        backlog.add(turn.size)
        if entry.begun:
            text = "The daemon was stopped while it worked on this message; send it anew."
            self._end_with_error(turn, Signal.INTERRUPTED, ErrorCode.INTERRUPTED, text)
        elif entry.cancel_reason is not None:
            self._cancel(turn, entry.cancel_reason, node.id)
        elif why:
            about = catalogue.MESSAGE_UNREADABLE.about(**turn.log_fields())
            text = "the stored message %r (row %d) cannot be read, and ends with an error: %s"
            log.error(text, key.request_id, entry.number, why, extra=about)
            text = "The message as it is stored cannot be read; send it again with a new id."
            self._end_with_error(turn, Signal.FAILED, ErrorCode.PROCESSING_ERROR, text)
        elif self._is_shared or self._inflight.is_first(turn):
            # With several daemons each waits in a task of its own: the store knows who is first.
            self._start(turn)

    def _end_with_error(self, turn: Turn, signal: Signal, code: ErrorCode, text: str) -> None:
        turn.decide_error(signal, code, text)
        self._settle(turn)

    def _add(
        self,
        node: Node,
        platform: str,
        message: protocol.Message,
        text: str,
        state: State,
        number: float = math.inf,
    ) -> Turn:
        key = SessionKey(platform, message.user.id, message.channel.id)
        turn = Turn(
            node,
            platform,
            message,
            size=admission.size(text, message),
            session=self.sessions.acquire(key, node.caused_by),
            response_id=next(self._response_ids),
            state=state,
            publish=self._bus.publish,
            answers=self._answers,
            is_known_first=not self._is_shared and self._recovery.has_read,
            number=number,
        )
        self._inflight.add(turn)
        self.admission.add(turn)
        return turn

    def _start_soon(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *arguments)

    def _stored(self, turn: Turn, result: bool | StoreError) -> None:
        """Accept the message that the store has inserted; or answer a duplicate or a failure."""
        self.admission.remove_uncommitted(turn.node)
        if isinstance(result, StoreError):
            self._drop(turn)
            refuse_unstored(turn, result)
        elif not result:
            was_cancelled = turn.lifecycle.decided
            self._drop(turn)
            if was_cancelled:  # the cancel was meant for the stored one
                cancel = protocol.Cancel(request_id=turn.message.id, reason=turn.reason)
                self.cancel(turn.node, cancel)
            self._start_soon(self._deduplicator.answer_stored, turn)
        else:
            turn.lifecycle.apply(Signal.ACCEPTED)
            self._send_accepted(turn)
            content = {"content": turn.message.content}
            self._bus.publish(EventType.MESSAGE_RECEIVED, **turn.event_fields(), data=content)
            self._advance(turn)

    def _advance(self, turn: Turn) -> None:
        """Start or end an accepted message, if it can be by now."""
        if turn.lifecycle.decided:
            self._settle(turn)
        elif self._stays_queued(turn):
            self._changed.set()
        elif self._inflight.is_first(turn):
            self._start(turn)

    def _start(self, turn: Turn) -> None:
        if turn.has_task:
            return
        turn.has_task = True
        self._start_soon(self._run_turn, turn)

    async def _run_turn(self, turn: Turn) -> None:
        """Be the message's task, from its turn to its outcome."""
        try:
            await self.executor.answer(turn)
        finally:
            turn.has_task = False
            if self._stays_queued(turn):
                self.executor.release_slot(turn)
                self._changed.set()
            else:
                turn.decide(Signal.CANCELLED, "the daemon is stopping", "daemon")  # if nothing has
                self._settle(turn)

    def _stays_queued(self, turn: Turn) -> bool:
        """Return whether a stop leaves the message queued in the store, as a kill would."""
        waits = turn.lifecycle.state is State.WAITING and not turn.begun and not turn.has_task
        return self._stopping and waits

    def _cancel(self, turn: Turn, reason: str, by: str) -> bool:
        """Cancel the message; return `False` if its outcome is decided already."""
        was_waiting = turn.lifecycle.state is State.WAITING
        if not turn.decide(Signal.CANCELLED, reason, by):
            return False
        if turn.has_task:
            turn.scope.cancel(reason)
        elif was_waiting:
            self._settle(turn)
        return True

    def _settle(self, turn: Turn) -> None:
        """Store and send the terminal frame: nothing of the message runs any more."""
        self.executor.release_slot(turn)
        self._completer.settle(turn)

    def _drop(self, turn: Turn) -> None:
        """Forget a message that is not accepted."""
        turn.lifecycle.apply(Signal.DROPPED)
        self.executor.release_slot(turn)
        self._remove(turn)
        if turn.found is not None:
            self._recover(*turn.found)

    def _remove(self, turn: Turn) -> None:
        """Forget the message, and start the next one of its channel."""
        following = self._inflight.remove(turn)
        self.admission.remove(turn)
        turn.release_answer()
        if turn.backlog is not None:
            turn.backlog.remove(turn.size)
        self.sessions.release(turn.session)
        self._shared_channels.channel_moved(*turn.key[:2])
        if following is not None and following.lifecycle.state is State.WAITING:
            self._advance(following)
        self._changed.set()

    # --- what nodes are told -----------------------------------------------------

    def _send_accepted(self, turn: Turn) -> None:
        node, request_id = turn.node, turn.message.id
        if node.wants_accepted:
            node.send(protocol.Accepted(request_id=request_id, duplicate=False))
        for again in turn.resent_by:
            send_duplicate(again, request_id)
        if not turn.lifecycle.decided and (place := max(self._inflight.position(turn), turn.ahead)):
            node.send(
                protocol.Status(
                    active_requests=1,
                    queue_length=place,
                    uptime_seconds=self._uptime(),
                    request_id=request_id,
                )
            )

    def _uptime(self) -> int:
        return int(trio.current_time() - self._started)
