"""The watermark of each task: all its occurrences up to there have their rows. No I/O.

Rows may be committed out of order: a full disk refuses one, and takes the next. A start that went
on after the last committed row would lose the refused one.
"""

import heapq
from datetime import datetime


class Watermarks:
    """The rows that are on their way to the store, by their tasks."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Watermark] = {}

    def __contains__(self, task: str) -> bool:
        """Return whether rows of a task are on their way."""
        return task in self._tasks

    def open(self, task: str, nominal_at: datetime) -> None:
        """Note that an occurrence's row goes to the store."""
        self._tasks.setdefault(task, _Watermark()).open(nominal_at)

    def close(self, task: str, nominal_at: datetime) -> datetime | None:
        """Note that its row is committed; return the task's watermark if it has risen."""
        watermark = self._tasks[task]
        until = watermark.close(nominal_at)
        if not watermark.pending:
            del self._tasks[task]
        return until


class _Watermark:
    def __init__(self) -> None:
        self.pending: set[datetime] = set()
        self._in_order: list[datetime] = []
        self._latest: datetime | None = None

    def open(self, nominal_at: datetime) -> None:
        if nominal_at not in self.pending:
            self.pending.add(nominal_at)
            heapq.heappush(self._in_order, nominal_at)

    def close(self, nominal_at: datetime) -> datetime | None:
        self.pending.discard(nominal_at)
        self._latest = max(nominal_at, self._latest or nominal_at)
        while self._in_order and self._in_order[0] not in self.pending:
            heapq.heappop(self._in_order)
        is_complete = not self._in_order or self._in_order[0] > self._latest
        return self._latest if is_complete else None
