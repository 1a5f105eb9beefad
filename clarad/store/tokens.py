"""The tokens that adapters show instead of the secret, and the nodes that are theirs."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, select, update

from clarad.store.engine import StoreError, errors_in_one_line
from clarad.store.messages import log_failure
from clarad.store.models import TokenNodeRow, TokenRow
from clarad.store.writer import Writer

PREFIX: Final = "clarad_"
"""How every token begins, so that scanners for leaked secrets can find it."""

MAX_NODES: Final = 1000
"""Nodes that one token may have; a token that got about cannot fill the store with names."""


class Token(NamedTuple):
    """A token as people are shown it; without platforms it is good for all of them."""

    name: str
    platforms: Sequence[str]
    created_at: datetime
    used_at: datetime | None
    """When a node registered with it last."""
    nodes: int


class Claim(Enum):
    """What came of a registration."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    """There is no such token, or it was revoked."""
    OTHER_PLATFORM = "other platform"
    TAKEN = "taken"
    """The node is another token's."""
    TOO_MANY = "too many"
    NEEDED = "needed"
    """No token was shown, and there are some."""


class Tokens:
    """What the gateway asks of the tables."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def is_known(self, token: str) -> bool:
        """Whether there is such a token.

        Raises:
            StoreError: the database fails.
        """
        digest = _digest(token)

        def find(connection: Connection) -> bool:
            found = connection.scalar(select(exists().where(TokenRow.digest == digest)))
            return bool(found)

        with errors_in_one_line():
            return await self._writer.call(find)

    async def claim(
        self, token: str | None, platform: str, node_id: str, *, needed: bool = False
    ) -> tuple[Claim, str | None]:
        """Have a node registered: from here on it is this token's, and no other's.

        Without a token it may be any node that is no token's; `needed` says that there has to be
        one, if any are in use.

        Returns:
            What came of it, and what the token is called.

        Raises:
            StoreError: the database fails.
        """
        digest = None if token is None else _digest(token)

        def claim(connection: Connection) -> tuple[Claim, str | None]:
            if digest is None:
                return _claim_without(connection, platform, node_id, needed=needed), None
            return _claim(connection, digest, platform, node_id)

        with errors_in_one_line():
            return await self._writer.call(claim)

    def free(self, platform: str, node_id: str) -> None:
        """Let anybody have a node that is gone for good."""

        def free(connection: Connection) -> None:
            connection.execute(delete(TokenNodeRow).where(_this(platform, node_id)))

        self._writer.hand_in(free, log_failure)


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
        "digest": _digest(token),
        "platforms": " ".join(platforms),
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(TokenRow), row)
    return token


def revoke_token(connection: Connection, name: str) -> bool:
    """Forget a token, and let anybody have its nodes; say whether there was one."""
    token_id = connection.scalar(select(TokenRow.id).where(TokenRow.name == name))
    if token_id is None:
        return False
    connection.execute(delete(TokenNodeRow).where(TokenNodeRow.token_id == token_id))
    connection.execute(delete(TokenRow).where(TokenRow.id == token_id))
    return True


def read_tokens(connection: Connection) -> list[Token]:
    """Return all tokens, by their names."""
    nodes = (
        select(func.count())
        .where(TokenNodeRow.token_id == TokenRow.id)
        .correlate(TokenRow)
        .scalar_subquery()
    )
    columns = (TokenRow.name, TokenRow.platforms, TokenRow.created_at, TokenRow.used_at, nodes)
    return [
        Token(name, platforms.split(), created_at, used_at, count)
        for name, platforms, created_at, used_at, count in connection.execute(
            select(*columns).order_by(TokenRow.name)
        )
    ]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _this(platform: str, node_id: str) -> ColumnElement[bool]:
    return and_(TokenNodeRow.platform == platform, TokenNodeRow.node_id == node_id)


def _owner(connection: Connection, platform: str, node_id: str) -> int | None:
    return connection.scalar(select(TokenNodeRow.token_id).where(_this(platform, node_id)))


def _claim_without(connection: Connection, platform: str, node_id: str, *, needed: bool) -> Claim:
    if needed and connection.scalar(select(exists().select_from(TokenRow))):
        return Claim.NEEDED
    taken = _owner(connection, platform, node_id) is not None
    return Claim.TAKEN if taken else Claim.GRANTED


def _claim(
    connection: Connection, digest: str, platform: str, node_id: str
) -> tuple[Claim, str | None]:
    columns = select(TokenRow.id, TokenRow.name, TokenRow.platforms)
    found = connection.execute(columns.where(TokenRow.digest == digest)).one_or_none()
    if found is None:
        return Claim.UNKNOWN, None
    token_id, name, platforms = found
    if platforms and platform not in platforms.split():
        return Claim.OTHER_PLATFORM, name
    owner = _owner(connection, platform, node_id)
    if owner is None:
        of_token = select(func.count()).where(TokenNodeRow.token_id == token_id)
        if (connection.scalar(of_token) or 0) >= MAX_NODES:
            return Claim.TOO_MANY, name
        row = {"platform": platform, "node_id": node_id, "token_id": token_id}
        connection.execute(insert(TokenNodeRow), row)
    elif owner != token_id:
        return Claim.TAKEN, name
    now = datetime.now(UTC)
    connection.execute(update(TokenRow).where(TokenRow.id == token_id).values(used_at=now))
    return Claim.GRANTED, name
