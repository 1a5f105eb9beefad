"""The tokens that adapters show instead of the secret, and whose each node is.

A node is whose who registers it first, a token's or the secret's, until it unregisters, is freed or
its token is revoked. (Rejected: to let the secret's nodes go unrecorded. A token that got about
could take their names, and with them the answers that they have still to be given.)
"""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from clarad.store.engine import StoreError, errors_in_one_line
from clarad.store.messages import log_failure
from clarad.store.models import NodeOwnerRow, TokenRow
from clarad.store.notify import TokenRevoked, notify
from clarad.store.writer import Writer

PREFIX: Final = "clarad_"
"""How every token begins, so that scanners for leaked secrets can find it."""

MAX_NODES: Final = 1000
"""Nodes that one token has, or the secret; of more, the one that registered longest ago is free."""


class Token(NamedTuple):
    """A token as people are shown it; without platforms it is good for all of them."""

    name: str
    platforms: Sequence[str]
    nodes: int
    created_at: datetime
    used_at: datetime | None
    """When a node registered with it last."""


class Claim(Enum):
    """What came of a registration."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    """There is no such token, or it was revoked."""
    OTHER_PLATFORM = "other platform"
    TAKEN = "taken"
    """The node is somebody else's."""
    NEEDED = "needed"
    """No token was shown, and there are some."""


class Tokens:
    """What the gateway asks of the tables."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def digests(self) -> frozenset[str]:
        """Return what all tokens hash to; `digest` hashes one.

        Raises:
            StoreError: the database fails.
        """

        def find(connection: Connection) -> frozenset[str]:
            return frozenset(connection.scalars(select(TokenRow.digest)))

        with errors_in_one_line():
            return await self._writer.call(find)

    async def claim(
        self, token: str | None, platform: str, node_id: str, *, needed: bool = False
    ) -> tuple[Claim, str | None]:
        """Have a node registered: from here on it is this token's, and no other's.

        Without a token it is everybody's who has none; `needed` says that there has to be one, if
        any are in use.

        Returns:
            What came of it, and what the token is called.

        Raises:
            StoreError: the database fails.
        """
        shown = None if token is None else digest(token)

        def claim(connection: Connection) -> tuple[Claim, str | None]:
            if shown is not None:
                return _claim_with(connection, shown, platform, node_id)
            if needed and connection.scalar(select(exists().select_from(TokenRow))):
                return Claim.NEEDED, None
            return _claim(connection, None, platform, node_id), None

        with errors_in_one_line():
            return await self._writer.call(claim)

    def free(self, platform: str, node_id: str) -> None:
        """Let anybody have a node that is gone for good."""

        def free(connection: Connection) -> None:
            free_node(connection, platform, node_id)

        self._writer.hand_in(free, log_failure)

    async def revoked(self, tokens: Collection[str]) -> set[str]:
        """Return those of these tokens that there are no more.

        Raises:
            StoreError: the database fails.
        """
        by_digest = {digest(token): token for token in tokens}
        query = select(TokenRow.digest).where(TokenRow.digest.in_(by_digest))

        def find(connection: Connection) -> set[str]:
            known = set(connection.scalars(query))
            return {token for hashed, token in by_digest.items() if hashed not in known}

        with errors_in_one_line():
            return await self._writer.call(find)

    async def caught_up(self) -> None:
        """Wait until all claims so far are answered.

        Raises:
            StoreError: the database fails.
        """
        with errors_in_one_line():
            await self._writer.call(lambda _connection: None)


def create_token(connection: Connection, name: str, platforms: Sequence[str]) -> str:
    """Make a token and return it: it is nowhere else, the store has what it hashes to.

    A hash that is quick to compute will do: nobody can try 256 random bits.

    Raises:
        StoreError: there is one of this name.
    """
    if connection.scalar(select(exists().where(TokenRow.name == name))):
        raise StoreError(f"there is a token {name!r}; revoke it first, or take another name")
    token = PREFIX + secrets.token_urlsafe(32)
    row = {
        "name": name,
        "digest": digest(token),
        "platforms": " ".join(platforms),
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(TokenRow), row)
    return token


def revoke_token(connection: Connection, name: str) -> bool:
    """Forget a token, and let anybody have its nodes; say whether there was one."""
    if connection.dialect.name == "postgresql":
        notify(connection, TokenRevoked())
    return connection.execute(delete(TokenRow).where(TokenRow.name == name)).rowcount > 0


def free_node(connection: Connection, platform: str, node_id: str) -> bool:
    """Let anybody have a node; say whether it was somebody's."""
    return connection.execute(delete(NodeOwnerRow).where(_this(platform, node_id))).rowcount > 0


def read_tokens(connection: Connection) -> list[Token]:
    """Return all tokens, by their names."""
    nodes = (
        select(func.count())
        .where(NodeOwnerRow.token_id == TokenRow.id)
        .correlate(TokenRow)
        .scalar_subquery()
    )
    columns = (TokenRow.name, TokenRow.platforms, nodes, TokenRow.created_at, TokenRow.used_at)
    return [
        Token(name, platforms.split(), count, created_at, used_at)
        for name, platforms, count, created_at, used_at in connection.execute(
            select(*columns).order_by(TokenRow.name)
        )
    ]


def digest(token: str) -> str:
    """Return what the store has of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _this(platform: str, node_id: str) -> ColumnElement[bool]:
    return and_(NodeOwnerRow.platform == platform, NodeOwnerRow.node_id == node_id)


def _claim_with(
    connection: Connection, shown: str, platform: str, node_id: str
) -> tuple[Claim, str | None]:
    columns = select(TokenRow.id, TokenRow.name, TokenRow.platforms)
    found = connection.execute(columns.where(TokenRow.digest == shown)).one_or_none()
    if found is None:
        return Claim.UNKNOWN, None
    token_id, name, platforms = found
    if platforms and platform not in platforms.split():
        return Claim.OTHER_PLATFORM, name
    claim = _claim(connection, token_id, platform, node_id)
    if claim is Claim.GRANTED:
        now = datetime.now(UTC)
        connection.execute(update(TokenRow).where(TokenRow.id == token_id).values(used_at=now))
    return claim, name


def _claim(connection: Connection, token_id: int | None, platform: str, node_id: str) -> Claim:
    now = datetime.now(UTC)
    owners = connection.execute(select(NodeOwnerRow.token_id).where(_this(platform, node_id)))
    match list(owners.scalars()):
        case []:
            row = {"platform": platform, "node_id": node_id, "token_id": token_id}
            connection.execute(insert(NodeOwnerRow), row | {"registered_at": now})
            _free_oldest(connection, token_id)
        case [owner] if owner == token_id:
            again = update(NodeOwnerRow).where(_this(platform, node_id))
            connection.execute(again.values(registered_at=now))
        case _:
            return Claim.TAKEN
    return Claim.GRANTED


def _free_oldest(connection: Connection, token_id: int | None) -> None:
    """Keep one party, that makes up names, from filling the store with them."""
    this = tuple_(NodeOwnerRow.platform, NodeOwnerRow.node_id)
    oldest = (
        select(NodeOwnerRow.platform, NodeOwnerRow.node_id)
        .where(NodeOwnerRow.token_id.is_not_distinct_from(token_id))
        .order_by(NodeOwnerRow.registered_at.desc())
        .offset(MAX_NODES)
    )
    connection.execute(delete(NodeOwnerRow).where(this.in_(oldest)))
