"""Waits for the store where it calls back."""

from collections.abc import Callable
from typing import Any

import trio


async def answer(ask: Callable[..., None]) -> Any:
    """Call with a `then`, wait until it is called, and return, or raise, what it is told."""
    answers: list[Any] = []
    answered = trio.Event()

    def then(result: Any) -> None:
        answers.append(result)
        answered.set()

    ask(then=then)
    await answered.wait()
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
