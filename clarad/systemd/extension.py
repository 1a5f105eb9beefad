"""Extends systemd's timeout while the main thread is busy, for example with a migration."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from clarad.systemd.notify import Notifier, extend_timeout, status

EXTENSION: Final = 5.0
"""Seconds that one request asks for: systemd kills a hanging process that long after the last one.

They delay the watchdog as well, so they are few.
"""

PAUSE: Final = 1.0
"""Seconds between two requests."""


@contextmanager
def extending(notifier: Notifier, budget: float, what: str) -> Iterator[None]:
    """Ask for more time until the block ends, for up to `budget` seconds.

    After `PAUSE` seconds the status says `what` takes so long.
    """
    if not notifier.is_enabled:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_extend, args=(notifier, monotonic() + budget, what, ended), name="extension"
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _extend(notifier: Notifier, deadline: float, what: str, ended: threading.Event) -> None:
    while not ended.wait(PAUSE) and (left := deadline - monotonic()) > 0:
        notifier.send(extend_timeout(min(EXTENSION, left)), status(what))
