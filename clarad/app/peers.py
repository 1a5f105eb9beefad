"""What other daemons say: acted on as it comes, and looked up where it may have been missed."""

import logging
from collections.abc import Awaitable, Callable

import trio

from clarad.delivery.registry import Nodes
from clarad.messages.completion import STORE_RETRY
from clarad.nurseries.scheduler import Scheduler
from clarad.nurseries.turns import Turns
from clarad.store import (
    CancelAsked,
    ChannelMoved,
    NodeCame,
    NodeOwed,
    Notice,
    StoreError,
    TasksChanged,
    TokenRevoked,
)
from clarad.store.cluster.messages import ClusterMessages
from clarad.store.cluster.nodes import ClusterNodeSessions
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Peers:
    """Passes on what is said to whom it concerns. `run` looks up what was not heard."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        nodes: Nodes,
        turns: Turns,
        messages: ClusterMessages,
        node_sessions: ClusterNodeSessions,
        close_revoked: Callable[[], Awaitable[None]],
    ) -> None:
        """`close_revoked` closes the connections of tokens that there are no more."""
        self._scheduler = scheduler
        self._nodes = nodes
        self._turns = turns
        self._messages = messages
        self._node_sessions = node_sessions
        self._close_revoked = close_revoked
        self._to_look = trio.Event()

    def hear(self, notice: Notice | None) -> None:
        """Take what another daemon has said; `None` if something may have been missed."""
        match notice:
            case None:
                self._scheduler.note_tasks_changed()
                self._nodes.fetch_missed()
                self._to_look.set()
            case TasksChanged():
                self._scheduler.note_tasks_changed()
            case NodeOwed():
                node = self._nodes.known(notice.node_id, notice.platform)
                if node is not None and node.sink is not None:
                    node.sink.fetch_missed()
            case NodeCame():
                self._nodes.evict(notice.node_id, notice.platform, notice.after_seq)
            case ChannelMoved() if self._messages.has(notice.owner):
                self._turns.channel_moved(notice.platform, notice.channel_id)
            case CancelAsked():
                if self._nodes.known(notice.node_id, notice.platform) is not None:
                    self._to_look.set()
            case TokenRevoked():
                self._to_look.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look whenever there may be something, until cancelled."""
        task_status.started()
        while True:
            await self._to_look.wait()
            self._to_look = trio.Event()
            try:
                await self._look()
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                text = "what other daemons have said cannot be looked up: %s"
                log.error(text, error, extra=about)
                self._to_look.set()
                await trio.sleep(STORE_RETRY)

    async def _look(self) -> None:
        await self._close_revoked()
        for asked in await self._messages.to_cancel():
            self._turns.cancel_requested(asked)
        here = self._nodes.numbered_here()
        mine = await self._node_sessions.mine()
        for platform, node_id in here.keys() - mine:
            # Unless it has come back meanwhile.
            self._nodes.evict(node_id, platform, here[platform, node_id] + 1)
