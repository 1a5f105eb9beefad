"""Everything that is written down. The only room that knows SQL."""

from clarad.store.engine import StoreError, open_engine
from clarad.store.hook_runs import HookRuns, StoredHookRun
from clarad.store.messages import MessageKey, Messages, Stored, Unfinished
from clarad.store.runs import Ending, Outcome
from clarad.store.task_runs import StoredTaskRun, TaskRuns
from clarad.store.tasks import Tasks, TaskState
from clarad.store.writer import Writer

__all__ = [
    "Ending",
    "HookRuns",
    "MessageKey",
    "Messages",
    "Outcome",
    "StoreError",
    "Stored",
    "StoredHookRun",
    "StoredTaskRun",
    "TaskRuns",
    "TaskState",
    "Tasks",
    "Unfinished",
    "Writer",
    "open_engine",
]
