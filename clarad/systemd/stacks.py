"""The stacks of all tasks and threads, for the log of a daemon that is stuck."""

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator

import trio


def every_stack() -> str:
    """Return the stacks of all Trio tasks and of all threads; equal ones once, with their number.

    Call it in Trio's thread: in another one it sees no tasks.
    """
    counted = Counter([*_tasks(), *_threads()])
    return "\n".join(
        text if times == 1 else f"{times} times: {text}" for text, times in counted.items()
    )


def _tasks() -> Iterator[str]:
    root = trio.lowlevel.current_root_task() if trio.lowlevel.in_trio_run() else None
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        frames = traceback.StackSummary.extract(task.iter_await_frames())
        yield f"task {task.name}\n" + "".join(frames.format())
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        yield f"thread {names.get(ident, ident)}\n{stack}"
