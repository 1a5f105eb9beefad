"""The sessions of nodes that may register with any of several daemons.

A node belongs to the daemon that it registered with last. That daemon numbers its frames above all
numbers that another daemon has used for the node.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql

from clarad.store.epoch import owned
from clarad.store.messages import abandon, log_failure
from clarad.store.models import MessageRow, NodeRow
from clarad.store.node_sessions import (
    SEQ_BITS,
    THIS_NODE,
    NodeSession,
    NodeSessions,
    forget_old,
    this_node,
)
from clarad.store.notify import CancelAsked, NodeCame, notify

_NEW: Final = postgresql.insert(NodeRow.__table__).on_conflict_do_nothing()  # type: ignore[arg-type]
_MINE: Final = THIS_NODE & (NodeRow.owner == bindparam("me"))
_UNDELIVERED: Final = (
    select(func.max(MessageRow.seq))
    .where(MessageRow.platform == bindparam("of_platform"))
    .where(MessageRow.node_id == bindparam("of_node_id"))
    .where(MessageRow.ended_at.is_not(None), MessageRow.delivered_at.is_(None))
)


class ClusterNodeSessions(NodeSessions):
    """The table `clarad_nodes`, with nodes of other daemons in it."""

    is_shared = True

    async def restore(self) -> tuple[list[NodeSession], int]:
        """Forget old sessions; the others are read when their nodes register."""
        await self._writer.call(partial(forget_old, now=self._writer.now()))
        await self.inherit()
        return [], 0

    async def inherit(self, epochs: Collection[int] | None = None) -> None:
        """Note that the nodes of these epochs have lost their connections."""
        lost = update(NodeRow).where(owned(NodeRow.owner, self._writer.epoch, epochs))
        lost = lost.where(NodeRow.left_at.is_(None)).values(left_at=self._writer.now())

        def inherit(connection: Connection) -> None:
            connection.execute(lost)

        await self._writer.call(inherit)

    async def acquire(
        self, platform: str, node_id: str, *, resumes: bool, is_known: bool
    ) -> tuple[NodeSession, int] | None:
        """Acquire a node that registers; return its last session, and the number to go on after.

        `None` if the node belongs to this daemon already, and `is_known` to it: then the daemon's
        memory is newer than the store.
        """
        this = this_node(platform, node_id)
        me = self._writer.owner
        assert me is not None

        def acquire(connection: Connection) -> tuple[NodeSession, int] | None:
            now = self._writer.now()
            new = {"platform": platform, "node_id": node_id, "session_id": "", "after_seq": 0}
            connection.execute(_NEW, new)
            columns = (NodeRow.session_id, NodeRow.after_seq, NodeRow.left_at, NodeRow.owner)
            locked = select(*columns).where(THIS_NODE).with_for_update()
            session_id, after_seq, left_at, owner = connection.execute(locked, this).one()
            left = None if resumes else now  # then there is nothing to be lost
            if is_known and owner == me:
                connection.execute(update(NodeRow).where(THIS_NODE).values(left_at=left), this)
                return None
            highest = max(after_seq, connection.scalar(_UNDELIVERED, this) or 0)
            after_seq = ((highest >> SEQ_BITS) + 1) << SEQ_BITS
            values = {"after_seq": after_seq, "owner": me, "left_at": left}
            connection.execute(update(NodeRow).where(THIS_NODE).values(values), this)
            notify(connection, NodeCame(platform, node_id, after_seq))
            away = (now - (left_at or now)).total_seconds()
            return NodeSession(platform, node_id, session_id, away), after_seq

        return await self._writer.call(acquire)

    async def mine(self) -> set[tuple[str, str]]:
        """Return the nodes that belong to this daemon, by platform and id."""
        query = select(NodeRow.platform, NodeRow.node_id)
        query = query.where(NodeRow.owner == self._writer.owner)

        def read(connection: Connection) -> set[tuple[str, str]]:
            return {(platform, node_id) for platform, node_id in connection.execute(query)}

        return await self._writer.call(read)

    def save(self, platform: str, node_id: str, session_id: str) -> None:
        """Note that the node is connected here, with this session."""
        values: dict[str, Any] = {"session_id": session_id, "left_at": None}
        self._update(platform, node_id, values)

    def mark_lost(self, platform: str, node_id: str) -> None:
        """Note that the node has lost its connection here."""
        self._update(platform, node_id, {"left_at": self._writer.now()})

    def forget(self, platform: str, node_id: str) -> None:
        """Forget the node's session, and have all daemons cancel its messages."""
        this = this_node(platform, node_id)

        def forget(connection: Connection) -> None:
            connection.execute(delete(NodeRow).where(THIS_NODE), this)
            if abandon(connection, platform, node_id, self._writer.now()):
                notify(connection, CancelAsked(platform, node_id))

        self._writer.submit(forget, log_failure)

    def _update(self, platform: str, node_id: str, values: dict[str, Any]) -> None:
        this = this_node(platform, node_id) | {"me": self._writer.owner}
        statement = update(NodeRow).where(_MINE).values(values)

        def write(connection: Connection) -> None:
            connection.execute(statement, this)

        self._writer.submit(write, log_failure)
