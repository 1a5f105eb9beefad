"""The sessions that nodes can resume, even after a restart of the daemon."""

from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from clarad.store.message_rows import owed_since
from clarad.store.messages import abandon, log_failure
from clarad.store.models import MessageRow, NodeRow
from clarad.store.writer import Writer

SEQ_BITS: Final = 32
"""Each run of the daemon numbers frames in a range of its own, which has 2^32 of them. JavaScript
counts up to 2^53: that is two million runs."""

THIS_NODE: Final = (NodeRow.platform == bindparam("of_platform")) & (
    NodeRow.node_id == bindparam("of_node_id")
)
_LEFT: Final = (
    update(NodeRow.__table__).where(THIS_NODE).values(left_at=bindparam("now"))  # type: ignore[arg-type]
)

# SQLite would go through all that has ended, by the index of that: it does not know that nearly
# all of it has been delivered.
_MESSAGES: Final = {
    "sqlite": "clarad_messages INDEXED BY ix_clarad_messages_undelivered",
    "postgresql": "clarad_messages",
}
_IS_UNDELIVERED: Final = "ended_at IS NOT NULL AND delivered_at IS NULL"


class NodeSession(NamedTuple):
    """A session; `away` is how long its node has not been connected, in seconds."""

    platform: str
    node_id: str
    session_id: str
    away: float


class NodeSessions:
    """The table `clarad_nodes`."""

    is_shared = False
    """Whether nodes may be with other daemons."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._after_seq = 0

    async def restore(self) -> tuple[list[NodeSession], int]:
        """Return the sessions of an earlier run, and the number after which frames are numbered.

        No frame had a number above that one before. Sessions and frames that are older than
        `KEPT_FOR` are forgotten.

        Raises:
            StoreError: the database fails.
        """
        restore = partial(_restore, now=self._writer.now())
        sessions, self._after_seq = await self._writer.call(restore)
        return sessions, self._after_seq

    def save(self, platform: str, node_id: str, session_id: str) -> None:
        """Note that the node is connected, with this session."""
        row = {
            "platform": platform,
            "node_id": node_id,
            "session_id": session_id,
            "after_seq": self._after_seq,
        }

        def save(connection: Connection) -> None:
            _delete(connection, platform, node_id)
            connection.execute(insert(NodeRow), row)

        self._writer.submit(save, log_failure)

    def mark_lost(self, platform: str, node_id: str) -> None:
        """Note that the node has lost its connection."""
        values = this_node(platform, node_id) | {"now": self._writer.now()}
        self._writer.execute_later(_LEFT, values, log_failure)

    def forget(self, platform: str, node_id: str) -> None:
        """Forget the node's session, and cancel its unfinished messages in the table."""

        def forget(connection: Connection) -> None:
            _delete(connection, platform, node_id)
            abandon(connection, platform, node_id, self._writer.now())

        self._writer.submit(forget, log_failure)


def _restore(connection: Connection, now: datetime) -> tuple[list[NodeSession], int]:
    numbered = text(
        f"SELECT max(seq) FROM {_MESSAGES[connection.dialect.name]} WHERE {_IS_UNDELIVERED}"  # noqa: S608
    )
    highest = max(
        connection.scalar(select(func.max(NodeRow.after_seq))) or 0,
        connection.scalar(numbered) or 0,
    )
    after_seq = ((highest >> SEQ_BITS) + 1) << SEQ_BITS
    forget_old(connection, now)
    lost = literal(now, NodeRow.left_at.type)  # with the daemon, if it was connected then
    connection.execute(
        update(NodeRow).values(after_seq=after_seq, left_at=func.coalesce(NodeRow.left_at, lost))
    )
    columns = select(NodeRow.platform, NodeRow.node_id, NodeRow.session_id, NodeRow.left_at)
    rows = connection.execute(columns.order_by(NodeRow.left_at))
    return [
        NodeSession(platform, node_id, session_id, (now - (left_at or now)).total_seconds())
        for platform, node_id, session_id, left_at in rows
    ], after_seq


def forget_old(connection: Connection, now: datetime) -> None:
    """Forget sessions and terminal frames that are older than `KEPT_FOR`."""
    given = owed_since(now)
    connection.execute(delete(NodeRow).where(NodeRow.left_at < given["owed_since"]))
    forget = text(
        f"UPDATE {_MESSAGES[connection.dialect.name]} SET delivered_at = :now"  # noqa: S608
        f" WHERE {_IS_UNDELIVERED} AND ended_at < :owed_since"
    )
    connection.execute(forget.bindparams(_time("now"), _time("owed_since")), {"now": now, **given})


def _time(name: str) -> BindParameter[datetime]:
    return bindparam(name, type_=MessageRow.ended_at.type)


def _delete(connection: Connection, platform: str, node_id: str) -> None:
    connection.execute(delete(NodeRow).where(THIS_NODE), this_node(platform, node_id))


def this_node(platform: str, node_id: str) -> dict[str, Any]:
    """Return what names a node in a statement."""
    return {"of_platform": platform, "of_node_id": node_id}
