"""Everything that is written down. The only room that knows SQL."""

from clarad.store.causes import Causes
from clarad.store.engine import Damaged, StoreError, Unfit, open_engine, reach
from clarad.store.epoch import Epoch, Heartbeat, InDoubt, LeaseLost
from clarad.store.hook_runs import HookRuns, StoredHookRun
from clarad.store.interrupting import interruptible
from clarad.store.lock import Taken, lock_database
from clarad.store.message_rows import KEPT_FOR, MessageKey
from clarad.store.messages import (
    UNREGISTERED,
    ChannelFull,
    Messages,
    Stored,
)
from clarad.store.missed import Missed, MissedFrame
from clarad.store.node_sessions import NodeSession, NodeSessions
from clarad.store.notify import (
    CancelAsked,
    ChannelMoved,
    MembersChanged,
    NodeCame,
    NodeOwed,
    Notice,
    TasksChanged,
    TokenRevoked,
)
from clarad.store.retention import Retention
from clarad.store.runs import MISSED, Ending, Outcome
from clarad.store.task_runs import StoredTaskRun, TaskRuns
from clarad.store.tasks import Tasks, TaskState
from clarad.store.tokens import Claim, Tokens
from clarad.store.unfinished import ToCancel, Unfinished
from clarad.store.writer import Writer

__all__ = [
    "KEPT_FOR",
    "MISSED",
    "UNREGISTERED",
    "CancelAsked",
    "Causes",
    "ChannelFull",
    "ChannelMoved",
    "Claim",
    "Damaged",
    "Ending",
    "Epoch",
    "Heartbeat",
    "HookRuns",
    "InDoubt",
    "LeaseLost",
    "MembersChanged",
    "MessageKey",
    "Messages",
    "Missed",
    "MissedFrame",
    "NodeCame",
    "NodeOwed",
    "NodeSession",
    "NodeSessions",
    "Notice",
    "Outcome",
    "Retention",
    "StoreError",
    "Stored",
    "StoredHookRun",
    "StoredTaskRun",
    "Taken",
    "TaskRuns",
    "TaskState",
    "Tasks",
    "TasksChanged",
    "ToCancel",
    "TokenRevoked",
    "Tokens",
    "Unfinished",
    "Unfit",
    "Writer",
    "interruptible",
    "lock_database",
    "open_engine",
    "reach",
]
