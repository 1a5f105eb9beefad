"""What the commands share that ask the running daemon for something."""

import os
from collections.abc import Callable

import trio

from clarad import config
from clarad.adapters.operator import OperatorError, open_operator
from clarad.cli import fail
from clarad.protocol import CAUSED_BY, control


def caused_by() -> list[str]:
    """Return the runs that led to this command, if a hook or a task has started it."""
    return os.environ.get(CAUSED_BY, "").split()


def ask(
    settings: config.Settings,
    request: control.Request,
    on_started: Callable[[str], None] = lambda _run: None,
    on_output: Callable[[control.Output], None] = lambda _output: None,
) -> control.Done | None:
    """Have the daemon do something and wait for it; `None`, with the reasons said, if it does not.

    Raises:
        OperatorError: no daemon runs, or it cannot be reached.
    """
    try:
        return trio.run(_ask, settings, request, on_started, on_output)
    except control.Refused as refused:
        fail(*refused.problems)
        return None


def say(request: control.Request, *, if_refused: str = "") -> int:
    """Have the daemon do something and print its answer; every reason why it cannot is one line.

    `if_refused` is what a refusal comes down to. The result is the exit status.
    """
    try:
        done = ask(config.load_as_client(), request)
    except config.ConfigError as error:
        fail(*error.problems)
        return 1
    except OperatorError as error:
        fail(str(error))
        return 1
    if done is None:
        fail(*filter(None, [if_refused]))
        return 1
    print(done.text)
    return 0


async def _ask(
    settings: config.Settings,
    request: control.Request,
    on_started: Callable[[str], None],
    on_output: Callable[[control.Output], None],
) -> control.Done:
    async with open_operator(settings.state_dir) as client:
        return await client.ask(request, on_started, on_output)
