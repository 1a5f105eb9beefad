"""Runs a synchronous function where Trio's clock can be read."""

from collections.abc import Callable
from functools import wraps

import trio


def run_in_trio(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that runs `function` inside a Trio of its own."""

    @wraps(function)
    def run() -> None:
        async def main() -> None:
            function()

        trio.run(main)

    return run
