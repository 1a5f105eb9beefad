"""Writes that the store has refused, retried until it takes them."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import trio

from clarad.automation.runs.run import PAGE, STORE_RETRY
from clarad.store import StoreError

Then = Callable[[StoreError | None], None]


class Write(Protocol):
    """Queues a row for the store; may be called again if that fails."""

    def __call__(self, *, then: Then) -> None:
        """Queue the write; `then` is called with its error, or with None."""


class _Row(NamedTuple):
    write: Write
    then: Then
    error: StoreError


class RetryQueue:
    """Retries one row a second while the store fails, and whole pages once it works again."""

    def __init__(self, given_up: trio.Event) -> None:
        """`given_up` is set when the daemon stops waiting for a store that fails."""
        self._given_up = given_up
        self._rows: deque[_Row] = deque()
        self._has_rows = trio.Event()

    def put(self, write: Write, then: Then, error: StoreError) -> None:
        """Retry a row that the store has refused with `error`.

        `then` is called once the row is written, or with the last error after `given_up`.
        """
        self._rows.append(_Row(write, then, error))
        self._has_rows.set()

    async def run(self) -> None:
        """Retry until cancelled, or until the daemon has given up."""
        page_size = 1
        while not self._given_up.is_set():
            if not self._rows:
                self._has_rows = trio.Event()
                await self._has_rows.wait()
            if page_size == 1:
                with trio.move_on_after(STORE_RETRY):
                    await self._given_up.wait()
                    break
            page = list(islice(self._rows, page_size))
            errors = await _write_all(page)
            for row, error in zip(page, errors, strict=True):
                self._rows.popleft()
                if error is None:
                    row.then(None)
                else:  # behind the others: perhaps only this row cannot be written
                    self._rows.append(row._replace(error=error))
            page_size = 1 if any(errors) else PAGE
        while self._rows:
            row = self._rows.popleft()
            row.then(row.error)


async def _write_all(rows: Sequence[_Row]) -> list[StoreError | None]:
    """Write rows; return the errors in the same order, which is that of the store's callbacks."""
    answers: list[StoreError | None] = []
    all_answered = trio.Event()

    def answer(error: StoreError | None) -> None:
        answers.append(error)
        if len(answers) == len(rows):
            all_answered.set()

    for row in rows:
        row.write(then=answer)
    await all_answered.wait()
    return answers
