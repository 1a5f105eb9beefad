"""Finds steps of clarad's tasks that hold Trio's loop for too long, and says where.

What counts is the CPU time of the loop's thread, without the garbage collector's: on a busy machine
a step can stand still for any time, and pytest has more to collect than a daemon has. So a call
that blocks is not found here; ruff's rules ASYNC find those.
"""

import gc
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trio

LIMIT: Final = 0.05
"""Seconds that a step of a task, or what other threads have handed in for one, may take."""

DEPTH: Final = 12
"""Frames of a stack that are shown."""

ROOTS: Final = tuple(f"{Path(__file__).parents[1] / name}/" for name in ("clarad", "sandbox"))
"""Whose tasks are watched; so are the tasks that these have started."""


class Stalls(trio.abc.Instrument):
    """Watches the run that it is added to."""

    def __init__(self, limit: float = LIMIT, roots: tuple[str, ...] = ROOTS) -> None:
        self.found: list[str] = []
        self._limit = limit
        self._roots = roots
        self._loop = threading.get_ident()
        self._began = self._collected = self._collecting_since = 0.0
        self._step = self._looked_at = 0
        self._is_in_step = False
        self._seen: dict[int, str] = {}  # stacks by step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step += 1
        self._collected = 0.0
        self._is_in_step = True
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._is_in_step = False
        took = time.thread_time() - self._began - self._collected
        if took > self._limit and self._is_watched(task):
            stack = self._seen.get(self._step, "it ended before anybody looked\n")
            self.found.append(f"{took * 1000:.0f} ms in a step of {task.name}:\n{stack}")

    def _is_watched(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None:
            code = getattr(task.coro, "cr_code", None)
            if code is not None and code.co_filename.startswith(self._roots):
                return True
            if "run_sync_soon" in task.name:
                return True
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return False

    def collecting(self, phase: str, _info: dict[str, Any]) -> None:
        """Count the collector's time; one of `gc.callbacks`."""
        if threading.get_ident() != self._loop:
            return
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting_since

    def look(self) -> None:
        """Note what the loop's thread is doing, should it still be at the step of the last look."""
        before, self._looked_at = self._looked_at, self._step
        if self._is_in_step and before == self._looked_at:
            frame = sys._current_frames().get(self._loop)
            self._seen = {before: "".join(traceback.format_stack(frame)[-DEPTH:])}


@contextmanager
def watched(**options: Any) -> Iterator[Stalls]:
    """Watch the run of Trio that this is called in; `found` says what held its loop."""
    stalls = Stalls(**options)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(stalls._limit / 2):
            stalls.look()

    watcher = threading.Thread(target=watch, name="watches for stalls", daemon=True)
    watcher.start()
    gc.callbacks.append(stalls.collecting)
    trio.lowlevel.add_instrument(stalls)
    try:
        yield stalls
    finally:
        trio.lowlevel.remove_instrument(stalls)
        gc.callbacks.remove(stalls.collecting)
        ended.set()
        watcher.join()
