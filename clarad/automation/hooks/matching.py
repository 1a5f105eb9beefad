"""Finds the hooks that an event starts."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

from clarad.automation.hooks.hook import Hook
from clarad.events import Event, EventType

_FIELDS: Final = frozenset(
    {"node_id", "platform", "user_id", "channel_id", "request_id", "session_id"}
)


class Index:
    """The enabled hooks by event type, sorted by descending priority."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._by_type: dict[EventType, list[Hook]] = {}
        for hook in sorted(hooks, key=lambda hook: -hook.priority):
            if hook.enabled:
                for event_type in hook.events:
                    self._by_type.setdefault(event_type, []).append(hook)
        self.types = frozenset(self._by_type)

    def matching(self, event: Event) -> list[Hook]:
        """Return the hooks that this event starts."""
        return [hook for hook in self._by_type.get(event.type, ()) if matches(hook, event)]


def matches(hook: Hook, event: Event) -> bool:
    """Return whether the event's fields match all patterns of the hook's `match`."""
    return all(
        value is not None and (_text(value) == wanted or fnmatchcase(_text(value), wanted))
        for name, wanted in hook.match.items()
        for value in (_field(event, name),)
    )


def _field(event: Event, name: str) -> Any:
    return getattr(event, name) if name in _FIELDS else event.data.get(name)


def _text(value: Any) -> str:
    """Return a value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
