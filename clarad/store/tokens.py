"""The tokens that adapters use instead of the secret, and who owns each node.

A node ID belongs to the token, or the secret, that registers it first, until the node unregisters
or is freed, or its token is revoked. (Rejected: not to record the secret's nodes. A stolen token
could take their IDs over, and with them the answers that they are owed.)
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

from clarad.store.engine import StoreError
from clarad.store.messages import log_failure
from clarad.store.models import NodeOwnerRow, TokenRow
from clarad.store.notify import TokenRevoked, notify
from clarad.store.writer import Writer

PREFIX: Final = "clarad_"
"""How every token begins, so that scanners for leaked secrets can find it."""

MAX_NODES: Final = 1000
"""Nodes that one token, or the secret, owns; another one frees the least recently registered."""


class Token(NamedTuple):
    """A token as people are shown it; without platforms it is good for all of them."""

    name: str
    platforms: Sequence[str]
    nodes: int
    created_at: datetime
    used_at: datetime | None
    """When a node registered with it last."""


class Claim(Enum):
    """The result of a registration."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    """There is no such token, or it was revoked."""
    OTHER_PLATFORM = "other platform"
    TAKEN = "taken"
    """The node belongs to another token, or to the secret."""
    NEEDED = "needed"
    """No token was shown, but one is needed as some exist."""


class Tokens:
    """What the gateway asks of the tables."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def digests(self) -> frozenset[str]:
        """Return the digests of all tokens.

        Raises:
            StoreError: the database fails.
        """

        def find(connection: Connection) -> frozenset[str]:
            return frozenset(connection.scalars(select(TokenRow.digest)))

        return await self._writer.call(find)

    async def claim(
        self, token: str | None, platform: str, node_id: str, *, needed: bool = False
    ) -> tuple[Claim, str | None]:
        """Claim a node for a token; without one, for the clients that use the secret.

        With `needed`, a claim without a token is refused if there are any tokens.

        Returns:
            The result, and the name of the token.

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

        return await self._writer.call(claim)

    def free(self, platform: str, node_id: str) -> None:
        """Free a node that has unregistered."""

        def free(connection: Connection) -> None:
            free_node(connection, platform, node_id)

        self._writer.submit(free, log_failure)

    async def revoked(self, tokens: Collection[str]) -> set[str]:
        """Return the ones of these tokens that were revoked.

        Raises:
            StoreError: the database fails.
        """
        by_digest = {digest(token): token for token in tokens}
        query = select(TokenRow.digest).where(TokenRow.digest.in_(by_digest))

        def find(connection: Connection) -> set[str]:
            known = set(connection.scalars(query))
            return {token for hashed, token in by_digest.items() if hashed not in known}

        return await self._writer.call(find)

    async def caught_up(self) -> None:
        """Wait until all claims so far are answered.

        Raises:
            StoreError: the database fails.
        """
        await self._writer.call(lambda _connection: None)


def create_token(connection: Connection, name: str, platforms: Sequence[str]) -> str:
    """Make a token and return it. The store keeps only its digest.

    A fast hash will do: nobody can guess 256 random bits.

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
    """Delete a token and free its nodes; return whether there was one."""
    if connection.dialect.name == "postgresql":
        notify(connection, TokenRevoked())
    return connection.execute(delete(TokenRow).where(TokenRow.name == name)).rowcount > 0


def free_node(connection: Connection, platform: str, node_id: str) -> bool:
    """Free a node; return whether it had an owner."""
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
    """Return the digest that the store keeps of a token."""
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
    """Free the owner's oldest nodes: a client that makes up IDs must not fill the store."""
    this = tuple_(NodeOwnerRow.platform, NodeOwnerRow.node_id)
    oldest = (
        select(NodeOwnerRow.platform, NodeOwnerRow.node_id)
        .where(NodeOwnerRow.token_id.is_not_distinct_from(token_id))
        .order_by(NodeOwnerRow.registered_at.desc())
        .offset(MAX_NODES)
    )
    connection.execute(delete(NodeOwnerRow).where(this.in_(oldest)))
