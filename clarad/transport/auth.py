"""Authentication of handshakes and registrations, by the secret or by a token in the store."""

import hmac
import logging
import math
from collections.abc import Mapping
from typing import Final

import trio

from clarad.protocol import ErrorCode, Refused, Register
from clarad.store import Claim, StoreError, Tokens
from clarad.store.tokens import PREFIX, digest
from clarad.systemd import catalogue
from clarad.transport.lockout import Lockout

log = logging.getLogger(__name__)

READ_INTERVAL: Final = 1.0
"""Seconds between two reads of the tokens, however many unknown ones are presented."""

_TOO_OFTEN: Final = "Too many wrong secrets; wait a minute."
_WRONG: Final = "The secret is wrong; send the gateway's CLARA_GATEWAY_SECRET, or a token of it."
_MISSING: Final = (
    "No secret was shown; send the gateway's CLARA_GATEWAY_SECRET, or a token of it, as `secret`."
)
_REASONS: Final = {
    Claim.UNKNOWN: _WRONG,
    Claim.NEEDED: "A token is needed; `clarad tokens create` makes one.",
    Claim.OTHER_PLATFORM: "This token is for another platform.",
    Claim.TAKEN: "This node is another adapter's: take another node_id, or have it freed.",
}


class KnownTokens:
    """The tokens' digests, in memory; the store is read if an unknown token is presented.

    All digests are read together, at most once a second, and one read serves all tasks that wait:
    peers who make tokens up cannot keep the store busy. A token that was just made, by a command or
    on another daemon, is found within that second.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._digests: frozenset[str] = frozenset()
        self._lock = trio.Lock()
        self._reads_begun = 0
        self._last_read = 0
        self._failure: str | None = None
        self._not_before = -math.inf

    async def contains(self, token: str) -> bool:
        """Return whether there is such a token, or was one that has just been revoked.

        Raises:
            StoreError: the token is not in memory, and the database fails.
        """
        presented = digest(token)
        if presented not in self._digests:
            # A read that had begun before this call may have missed the token. So this task needs
            # one that begins later, and while it waits for the lock another task may do it.
            begun_before = self._reads_begun
            async with self._lock:
                if self._last_read <= begun_before:
                    await self._read()
                if self._failure is not None:
                    raise StoreError(self._failure)
        return presented in self._digests

    async def _read(self) -> None:
        await trio.sleep_until(self._not_before)
        self._not_before = trio.current_time() + READ_INTERVAL
        self._reads_begun += 1
        number = self._reads_begun
        try:
            self._digests, self._failure = await self._tokens.digests(), None
        except StoreError as error:  # the answer to every task that waits
            self._failure = f"{error}"
        self._last_read = number

    def clear(self) -> None:
        """Read the store for the next token: some were revoked."""
        self._digests = frozenset()


class Authenticator:
    """Decides who may connect and who may register a node."""

    def __init__(self, secret: str | None, allowed_origins: frozenset[str], tokens: Tokens) -> None:
        """`allowed_origins` may be replaced at any time."""
        self.allowed_origins = allowed_origins
        self._secret = None if secret is None else secret.encode()
        self._tokens = tokens
        self._known = KnownTokens(tokens)
        self._lockout = Lockout()

    async def check_handshake(
        self, headers: Mapping[str, str], address: str
    ) -> tuple[int, str] | None:
        """Return the HTTP status and the reason to reject a handshake with, `None` to accept it."""
        if not self.is_origin_allowed(headers):
            return 403, "This origin is not in CLARA_GATEWAY_ALLOWED_ORIGINS."
        credential = bearer(headers)
        try:
            if credential is None or await self._is_valid(credential):
                return None
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.error("a token cannot be looked up: %s", error, extra=about)
            return 503, "The database fails; try again."
        return (429, _TOO_OFTEN) if self.count_failure(address) else (401, _WRONG)

    async def authenticate(
        self, frame: Register, address: str, credential: str | None
    ) -> str | None:
        """Check a registration, and claim its node.

        `credential` is the secret or token that the handshake presented; without one, it is the
        frame's.

        Returns:
            The name of the token that was presented, if one was.

        Raises:
            Refused: with the frame that says why.
        """
        secret = credential or frame.secret
        claim, name = await self._claim(frame, secret)
        if claim is Claim.UNKNOWN and self.count_failure(address):
            raise Refused(ErrorCode.RATE_LIMITED, _TOO_OFTEN)
        if claim is Claim.UNKNOWN and not secret:
            raise Refused(ErrorCode.AUTH_FAILED, _MISSING)
        if claim is not Claim.GRANTED:
            raise Refused(ErrorCode.AUTH_FAILED, _REASONS[claim])
        return name

    def is_origin_allowed(self, headers: Mapping[str, str]) -> bool:
        """Return whether a web page of the handshake's origin may connect.

        Browsers send `Origin` with every WebSocket handshake, and pages cannot forge it (RFC 6455,
        section 10.2); adapters send none. This keeps out a page that the operator visits.
        """
        origin = headers.get("origin")
        return origin is None or origin.lower().rstrip("/") in self.allowed_origins

    def is_secret(self, presented: str | None) -> bool:
        """Compare with the secret, in constant time; without one, everything matches."""
        if self._secret is None:
            return True
        return hmac.compare_digest((presented or "").encode(errors="replace"), self._secret)

    def count_failure(self, address: str) -> bool:
        """Count a failure of an address; return whether the address was locked out before."""
        now = trio.current_time()
        if self._lockout.is_locked(address, now):
            return True
        if self._lockout.count_failure(address, now):
            about = catalogue.ADAPTER_REFUSED.about(address=address)
            text = "refused %s too often: for a minute, what else is wrong from there is not logged"
            log.warning(text, address, extra=about)
        return False

    async def _is_valid(self, credential: str | None) -> bool:
        if credential is not None and _is_token(credential):
            return await self._known.contains(credential)
        return self.is_secret(credential)

    async def _claim(self, frame: Register, secret: str | None) -> tuple[Claim, str | None]:
        token = secret if secret is not None and _is_token(secret) else None
        try:
            if not await self._is_valid(secret):
                return Claim.UNKNOWN, None
            return await self._tokens.claim(
                token,
                frame.platform,
                frame.node_id,
                needed=self._secret is None,
            )
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(node_id=frame.node_id)
            log.error("node %r cannot be registered: %s", frame.node_id, error, extra=about)
            message = "The database fails; register again in a moment."
            raise Refused(ErrorCode.PROCESSING_ERROR, message, recoverable=True) from None

    def forget_tokens(self) -> None:
        """Look up every token anew from now on: some were revoked."""
        self._known.clear()

    def free(self, platform: str, node_id: str) -> None:
        """Release a node that has unregistered: any credential may claim it."""
        self._tokens.free(platform, node_id)


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the token of an `Authorization: Bearer` header (RFC 6750, section 2.1)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_token(credential: str) -> bool:
    return credential.startswith(PREFIX)
