"""Requests to the running daemon, over its control socket."""

import os
from collections.abc import Callable

import trio

from clarad import config
from clarad.adapters.operator import OperatorError, open_operator
from clarad.cli import print_error
from clarad.protocol import CAUSED_BY, control


def caused_by() -> list[str]:
    """Return the runs that led to this command, if a hook or a task has started it."""
    return os.environ.get(CAUSED_BY, "").split()


def ask(
    settings: config.Settings,
    request: control.Request,
    on_started: Callable[[str], None] = lambda _run: None,
    on_output: Callable[[control.Output], None] = lambda _output: None,
) -> control.Done:
    """Have the daemon carry out a request, and wait until it has.

    Ctrl-C ends the waiting; the run of a hook or task that has begun goes on.

    Raises:
        OperatorError: no daemon runs, or it cannot be reached.
        Refused: the daemon does not carry it out.
    """
    return trio.run(_ask, settings, request, on_started, on_output)


def ask_and_print(request: control.Request, *, if_refused: str = "") -> int:
    """Send a request to the daemon and print its answer, or a line for each reason why it cannot.

    `if_refused` is a last line after a refusal. Returns the exit status.
    """
    try:
        done = ask(config.load_as_client(), request)
    except config.ConfigError as error:
        print_error(*error.problems)
        return 1
    except OperatorError as error:
        print_error(str(error))
        return 1
    except control.Refused as refused:
        print_error(*refused.problems, *filter(None, [if_refused]))
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
