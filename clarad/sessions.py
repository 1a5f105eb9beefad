"""The sessions that live, each a task: made by its first message, ended by time, by the daemon, or
because there are too many without a message."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from clarad.events import Bus, EventType
from clarad.turn import Session, SessionKey

MAX_IDLE: Final = 4096
"""Sessions in which no message lives; of more, the one that has been so longest ends."""


class Sessions:
    """Knows the session of each user in each channel."""

    def __init__(
        self,
        make_session: Callable[[SessionKey], Session],
        bus: Bus,
        start_soon: Callable[..., None],
    ) -> None:
        """`start_soon` starts a task that a session is."""
        self._make_session = make_session
        self._bus = bus
        self._start_soon = start_soon
        self._sessions: dict[SessionKey, Session] = {}
        self._idle: OrderedDict[SessionKey, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def enter(self, key: SessionKey, caused_by: tuple[str, ...]) -> Session:
        """Return the session for a message that begins to live in it, a new one if need be."""
        session = self._sessions.get(key)
        if session is None or session.scope.cancel_called:
            session = self._sessions[key] = self._make_session(key)
            session.caused_by = caused_by
            self._start_soon(self._run, session)
        session.messages += 1
        session.touch()
        self._idle.pop(key, None)
        return session

    def leave(self, session: Session) -> None:
        """Count a message no more; of very many sessions without any, end one."""
        session.messages -= 1
        session.touch()
        if session.messages or self._sessions.get(session.key) is not session:
            return
        self._idle[session.key] = session
        if len(self._idle) > MAX_IDLE:
            _, oldest = self._idle.popitem(last=False)
            oldest.crowded_out = True
            oldest.scope.cancel("too many sessions")

    async def _run(self, session: Session) -> None:
        self._publish(EventType.SESSION_START, session, {})
        try:
            await session.run()
        finally:
            if self._sessions.get(session.key) is session:
                del self._sessions[session.key]
            if self._idle.get(session.key) is session:
                del self._idle[session.key]
            why = "crowded_out" if session.crowded_out else "shutdown"
            if session.timed_out:
                self._publish(EventType.SESSION_TIMEOUT, session, {"timeout": session.timeout})
                why = "timeout"
            self._publish(EventType.SESSION_END, session, {"reason": why})

    def _publish(self, event_type: EventType, session: Session, data: dict[str, Any]) -> None:
        self._bus.publish(
            event_type,
            **session.key._asdict(),
            session_id=session.id,
            caused_by=session.caused_by,
            data=data,
        )
