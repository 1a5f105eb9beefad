"""A deadline for every test: one that hangs fails with the stacks of all tasks and threads.

SIGALRM makes the test fail in whatever it does. A test can go on all the same: what it has shielded
may wait for what the failure has just ended. Then the process ends a little later, with the stacks
of its threads; pytest-xdist reports the test as crashed and goes on with the others.
"""

import faulthandler
import signal
from collections.abc import Generator
from functools import partial
from types import FrameType
from typing import Final

import pytest
import trio
from _pytest.faulthandler import fault_handler_stderr_fd_key

from clarad.systemd.stacks import every_stack

SECONDS: Final = 120.0
"""For a test without the marker `deadline`: many times what the slowest of them takes."""

GRACE: Final = 20.0
"""Seconds in which a test that was interrupted may still end by itself."""


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test, with its fixtures, under its deadline."""
    marker = item.get_closest_marker("deadline")
    seconds = SECONDS if marker is None else marker.args[0]
    grace = GRACE if marker is None else marker.kwargs.get("grace", GRACE)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        text = f"it has not ended within {seconds:g} s\n{every_stack()}"
        fail = partial(pytest.fail, text, pytrace=False)
        if trio.lowlevel.in_trio_run() and trio.lowlevel.currently_ki_protected():
            # In Trio's own code, which does not survive an exception: no test after this one could
            # use Trio. As with Ctrl-C, the run hears of it at its next step.
            trio.lowlevel.current_trio_token().run_sync_soon(fail)
        else:
            fail()

    stderr = item.config.stash[fault_handler_stderr_fd_key]
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + grace, file=stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
