"""What the soaked installation runs: its hooks, its tasks, and the command that answers messages.

Each thing that runs leaves one byte in a file of its own: so it shows how often it did, and when,
and a full disk that lets small files through does not hide it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

HOOKS: Final = """\
# {version}
hooks:
  - name: heard
    event: message:received
    match: {{channel_id: "*-0"}}
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
  - name: ended
    event: [message:sent, message:cancelled]
    match: {{channel_id: "*-1"}}
    overlap: queue
    retries: 1
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
  - name: posted
    event: message:sent
    match: {{channel_id: "*-2"}}
    type: webhook
    url: {url}
  - name: used
    event: "tool:*"
    match: {{channel_id: "*-0"}}
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
  - name: gone-quiet
    event: session:timeout
    overlap: skip
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
  - name: struck
    event: scheduler:task_run
    match: {{task: minute}}
    command: printf x >> "$SOAK_ACTS/hook-$CLARA_RUN"
"""

INTERVALS: Final = {"every": 0.5, "some": 0.4, "hang": 2.0, "minute": 60.0}
"""The tasks that come again, and the seconds between their occurrences."""

_TASKS: Final = """\
tasks:
  - name: every
    interval: 0.5
    overlap: queue
    catch_up: all
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"
  - name: some
    interval: 0.4
    overlap: skip
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"; sleep 0.5
  - name: hang
    interval: 2
    overlap: cancel
    command: setsid sleep 1000 & sleep 1000
  - name: minute
    type: cron
    cron: "* * * * *"
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"
"""

_ONCE: Final = """\
  - name: once-{number}
    type: one_shot
    run_at: {at}
    command: printf x >> "$SOAK_ACTS/task-$CLARA_RUN"
"""

NO_TASKS: Final = "tasks: []\n"

ONE_SHOTS: Final = 6

COMMAND: Final = r"""
printf x >> "$SOAK_ACTS/begun-$CLARA_REQUEST_ID"
case "$CLARA_CONTENT" in
    /sh*) eval "${CLARA_CONTENT#/sh}";;
    *) printf '%s' "$CLARA_CONTENT";;
esac
printf x >> "$SOAK_ACTS/ended-$CLARA_REQUEST_ID"
"""
"""The responder, of a daemon that has no sandboxes."""


def moments(began: datetime, seconds: float) -> list[datetime]:
    """Return when the one-shots of a soak of this length are due: all of them before its end."""
    return [
        began + timedelta(seconds=seconds * (n + 1) / (ONE_SHOTS + 1)) for n in range(ONE_SHOTS)
    ]


def tasks(due_at: Sequence[datetime]) -> str:
    """Return scheduler.yaml, with a one-shot for each of these times."""
    once = [_ONCE.format(number=n, at=at.isoformat()) for n, at in enumerate(due_at)]
    return _TASKS + "".join(once)
