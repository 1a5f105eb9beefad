"""Hooks and tasks as `clarad` lists them, and what a reload would change. No I/O."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from clarad.automation.hooks.hook import Hook
from clarad.automation.tasks import schedule
from clarad.automation.tasks.task import Task

_INSTANT: Final = timedelta(microseconds=1)


def hook_row(hook: Hook) -> dict[str, Any]:
    """Return a hook's row in the list, without secrets."""
    return {
        "name": hook.name,
        "events": sorted(hook.events),
        "match": hook.match,
        "runs": hook.command or f"POST {hook.url}",
        "timeout": hook.timeout,
        "priority": hook.priority,
        "overlap": hook.overlap,
        "retries": hook.retries,
        "enabled": hook.enabled,
        "description": hook.description,
    }


def task_row(
    task: Task, *, now: datetime, anchor: datetime | None, is_paused: bool
) -> dict[str, Any]:
    """Return a task's row in the list; `anchor` is the phase of its interval."""
    return {
        "name": task.name,
        "type": task.type,
        "schedule": schedule.identity(task),
        "command": task.command,
        "timeout": task.timeout,
        "overlap": task.overlap,
        "catch_up": task.catch_up,
        "retries": task.retries,
        "enabled": task.enabled,
        "paused": is_paused,
        "description": task.description,
        "next_at": None if is_paused or not task.enabled else _next(task, now, anchor),
    }


def _next(task: Task, now: datetime, anchor: datetime | None) -> datetime | None:
    """Return when a task is due next; `None` if that depends on the daemon's next start."""
    if schedule.is_from_start(task):
        return None
    anchor = anchor or schedule.anchor(task, now)
    found = next(schedule.occurrences(task, after=now - _INSTANT, anchor=anchor), None)
    return None if found is None else found.nominal_at


def differences(now: Iterable[Hook | Task], then: Iterable[Hook | Task]) -> Sequence[str]:
    """Return what changes between two sets of entries, a phrase for each kind of change."""
    before, after = {entry.name: entry for entry in now}, {entry.name: entry for entry in then}
    changes = {
        "adds": [name for name in after if name not in before],
        "changes": [name for name in before if after.get(name, before[name]) != before[name]],
        "removes": [name for name in before if name not in after],
    }
    return [f"{verb} {', '.join(names)}" for verb, names in changes.items() if names]
