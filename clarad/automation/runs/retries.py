"""Rows that the store has refused, until it takes them."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import trio

from clarad.automation.runs.run import PAGE, STORE_RETRY
from clarad.store import StoreError

Then = Callable[[StoreError | None], None]


class Write(Protocol):
    """Hands a row to the store, as often as it is needed."""

    def __call__(self, *, then: Then) -> None:
        """Write it, then call back."""


class _Row(NamedTuple):
    write: Write
    then: Then
    error: StoreError


class RetryQueue:
    """Tries one row a second while the store fails, and a page at a time once it works again."""

    def __init__(self, given_up: trio.Event) -> None:
        """`given_up` is set when the daemon waits no longer for a store that fails."""
        self._given_up = given_up
        self._rows: deque[_Row] = deque()
        self._has_rows = trio.Event()

    def put(self, write: Write, then: Then, error: StoreError) -> None:
        """Have a row written later that the store has refused with `error`.

        `then` is called once it is written, or with the error when the daemon has given up.
        """
        self._rows.append(_Row(write, then, error))
        self._has_rows.set()

    async def run(self) -> None:
        """Try again until cancelled, or until the daemon has given up."""
        at_one_go = 1
        while not self._given_up.is_set():
            if not self._rows:
                self._has_rows = trio.Event()
                await self._has_rows.wait()
            if at_one_go == 1:
                with trio.move_on_after(STORE_RETRY):
                    await self._given_up.wait()
                    break
            page = list(islice(self._rows, at_one_go))
            errors = await _write_all(page)
            for row, error in zip(page, errors, strict=True):
                self._rows.popleft()
                if error is None:
                    row.then(None)
                else:  # to the end: it may be this row alone that cannot be written
                    self._rows.append(row._replace(error=error))
            at_one_go = 1 if any(errors) else PAGE
        while self._rows:
            row = self._rows.popleft()
            row.then(row.error)


async def _write_all(rows: Sequence[_Row]) -> list[StoreError | None]:
    """Hand rows to the store; return its answers, which come in the same order."""
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
