"""Sessions: a user's first message begins one; a timeout, the cap or the daemon's stop ends it.

A session is a record, not a task: no message ends with its session, so the task would have no
children, and ending thousands of tasks would delay a stop.
"""

import math
from collections import OrderedDict
from typing import Any, Final

import trio

from clarad.events import Bus, EventType
from clarad.messages.turn import Session, SessionKey

MAX_IDLE: Final = 4096
"""Idle sessions, without a message in flight. Beyond that the one idle longest ends."""

END_BATCH: Final = 100
"""Sessions that are ended between two checkpoints."""


class Sessions:
    """The session of each user in each channel."""

    def __init__(self, bus: Bus, timeout: float) -> None:
        """`timeout` is how many seconds a session may be idle."""
        self._bus = bus
        self._timeout = timeout
        self._sessions: dict[SessionKey, Session] = {}
        self._idle: OrderedDict[SessionKey, Session] = OrderedDict()  # the longest first
        self._look_at = math.inf
        """When `run` wakes next if nothing changes."""
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._sessions)

    def set_timeout(self, timeout: float) -> None:
        """Change how many seconds a session may be idle."""
        self._timeout = timeout
        self._changed.set()

    def acquire(self, key: SessionKey, caused_by: tuple[str, ...]) -> Session:
        """Return the session for a new message, and begin one if there is none."""
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session(key, caused_by)
            self._publish(EventType.SESSION_START, session, {})
        session.messages += 1
        self._idle.pop(key, None)
        return session

    def release(self, session: Session) -> None:
        """Note that a message has ended; above `MAX_IDLE` the session idle longest ends."""
        session.messages -= 1
        if session.messages or self._sessions.get(session.key) is not session:
            return
        session.idle_since = trio.current_time()
        self._idle[session.key] = session
        if session.idle_since + self._timeout < self._look_at:
            self._changed.set()
        if len(self._idle) > MAX_IDLE:
            self._end(next(iter(self._idle.values())), "crowded_out")

    async def run(self) -> None:
        """End sessions that have been idle for the timeout, until cancelled."""
        while True:
            self._changed = trio.Event()
            oldest = next(iter(self._idle.values()), None)
            self._look_at = math.inf if oldest is None else oldest.idle_since + self._timeout
            if oldest is None or trio.current_time() < self._look_at:
                with trio.move_on_at(self._look_at):
                    await self._changed.wait()
            else:
                self._publish(EventType.SESSION_TIMEOUT, oldest, {"timeout": self._timeout})
                self._end(oldest, "timeout")
                await trio.lowlevel.checkpoint()

    async def end_all(self) -> None:
        """End all sessions with the daemon."""
        for n, session in enumerate(list(self._sessions.values()), start=1):
            self._end(session, "shutdown")
            if n % END_BATCH == 0:
                await trio.lowlevel.checkpoint()

    def _end(self, session: Session, why: str) -> None:
        if self._sessions.get(session.key) is not session:
            return  # `run` has ended it while `end_all` let others do something
        del self._sessions[session.key]
        self._idle.pop(session.key, None)
        self._publish(EventType.SESSION_END, session, {"reason": why})

    def _publish(self, event_type: EventType, session: Session, data: dict[str, Any]) -> None:
        self._bus.publish(
            event_type,
            **session.key._asdict(),
            session_id=session.id,
            caused_by=session.caused_by,
            data=data,
        )
