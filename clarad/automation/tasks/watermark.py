"""How far each task is accounted for: up to there, all its occurrences have their rows. No I/O.

Rows need not be written in the order of the occurrences: a disk that is full refuses one and takes
the next. To go on after that one, at the next start, would lose the first.
"""

import heapq
from datetime import datetime


class Watermarks:
    """The rows of each task that are on their way to the store."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Account] = {}

    def __contains__(self, task: str) -> bool:
        """Whether rows of a task are on their way."""
        return task in self._tasks

    def open(self, task: str, nominal_at: datetime) -> None:
        """Note that an occurrence's row is to be written."""
        self._tasks.setdefault(task, _Account()).open(nominal_at)

    def close(self, task: str, nominal_at: datetime) -> datetime | None:
        """Note that it is written; return how far the task is accounted for, if that is news."""
        account = self._tasks[task]
        until = account.close(nominal_at)
        if not account.pending:
            del self._tasks[task]
        return until


class _Account:
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
