"""Notices from other daemons: handled as they arrive, and looked up where one may be missed."""

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
    """Passes notices on to the parts that they concern; `run` looks up those that were missed."""

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
        """`close_revoked` closes the connections of tokens that were revoked."""
        self._scheduler = scheduler
        self._nodes = nodes
        self._turns = turns
        self._messages = messages
        self._node_sessions = node_sessions
        self._close_revoked = close_revoked
        self._has_news = trio.Event()

    def receive(self, notice: Notice | None) -> None:
        """Handle a notice of another daemon; with `None`, look up all that may have been missed."""
        match notice:
            case None:
                self._scheduler.note_tasks_changed()
                self._nodes.fetch_missed()
                self._has_news.set()
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
                    self._has_news.set()
            case TokenRevoked():
                self._has_news.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look the tables up whenever a notice says that there may be news, until cancelled."""
        task_status.started()
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            try:
                await self._look_up()
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                text = "what other daemons have said cannot be looked up: %s"
                log.error(text, error, extra=about)
                self._has_news.set()
                await trio.sleep(STORE_RETRY)

    async def _look_up(self) -> None:
        await self._close_revoked()
        for asked in await self._messages.to_cancel():
            self._turns.cancel_requested(asked)
        here = self._nodes.numbered_here()
        mine = await self._node_sessions.mine()
        for platform, node_id in here.keys() - mine:
            # Unless it has come back meanwhile.
            self._nodes.evict(node_id, platform, here[platform, node_id] + 1)
