"""Everything that is written down. The only room that knows SQL."""

from clarad.store.engine import StoreError, open_engine, reach
from clarad.store.hook_runs import HookRuns, StoredHookRun
from clarad.store.life import LeaseLost, Life, Look
from clarad.store.messages import KEPT_FOR, MessageKey, Messages, Stored, Unfinished
from clarad.store.missed import Missed, MissedFrame
from clarad.store.node_sessions import NodeSession, NodeSessions
from clarad.store.notices import MembersChanged, Notice, TasksChanged
from clarad.store.runs import MISSED, Ending, Outcome
from clarad.store.task_runs import StoredTaskRun, TaskRuns
from clarad.store.tasks import Tasks, TaskState
from clarad.store.tokens import Claim, Tokens
from clarad.store.writer import Writer

__all__ = [
    "KEPT_FOR",
    "MISSED",
    "Claim",
    "Ending",
    "HookRuns",
    "LeaseLost",
    "Life",
    "Look",
    "MembersChanged",
    "MessageKey",
    "Messages",
    "Missed",
    "MissedFrame",
    "NodeSession",
    "NodeSessions",
    "Notice",
    "Outcome",
    "StoreError",
    "Stored",
    "StoredHookRun",
    "StoredTaskRun",
    "TaskRuns",
    "TaskState",
    "Tasks",
    "TasksChanged",
    "Tokens",
    "Unfinished",
    "Writer",
    "open_engine",
    "reach",
]
