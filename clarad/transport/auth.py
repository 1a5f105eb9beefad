"""Who is let in: handshakes and registrations, by the secret or by a token in the store."""

import logging
import math
from collections.abc import Mapping
from typing import Final

import trio

from clarad.protocol import ErrorCode, Refused, Register
from clarad.store import Claim, StoreError, Tokens
from clarad.store.tokens import PREFIX, digest
from clarad.systemd import catalogue
from clarad.transport.access import AuthGuard, bearer

log = logging.getLogger(__name__)

READ_INTERVAL: Final = 1.0
"""Seconds between two readings of the tokens, whatever is shown."""

_TOO_OFTEN: Final = "Too many wrong secrets; wait a minute."
_WRONG: Final = "The secret is wrong; send the gateway's CLARA_GATEWAY_SECRET, or a token of it."
_MISSING: Final = (
    "No secret was shown; send the gateway's CLARA_GATEWAY_SECRET, or a token of it, as `secret`."
)
_WHY: Final = {
    Claim.UNKNOWN: _WRONG,
    Claim.NEEDED: "A token is needed; `clarad tokens create` makes one.",
    Claim.OTHER_PLATFORM: "This token is for another platform.",
    Claim.TAKEN: "This node is another adapter's: take another node_id, or have it freed.",
}


class KnownTokens:
    """Which tokens there are, from memory; the store is asked about those that are new.

    It is asked for all of them, at most once a second and once for all who wait: so strangers who
    make tokens up do not keep the store busy, however many they are, and a token that was made a
    moment ago, by a command or beside another daemon, is found within that second.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._digests: frozenset[str] = frozenset()
        self._lock = trio.Lock()
        self._begun = 0
        self._done = 0
        self._failure: str | None = None
        self._not_before = -math.inf

    async def has(self, token: str) -> bool:
        """Whether there is such a token, or was one that has been revoked a moment ago.

        Raises:
            StoreError: it is not known, and the database fails.
        """
        shown = digest(token)
        if shown not in self._digests:
            asked = self._begun
            async with self._lock:
                if self._done <= asked:  # no reading has begun since, and ended
                    await self._read()
                if self._failure is not None:
                    raise StoreError(self._failure)
        return shown in self._digests

    async def _read(self) -> None:
        await trio.sleep_until(self._not_before)
        self._not_before = trio.current_time() + READ_INTERVAL
        self._begun += 1
        reading = self._begun
        try:
            self._digests, self._failure = await self._tokens.digests(), None
        except StoreError as error:  # it is the answer to all who wait
            self._failure = f"{error}"
        self._done = reading

    def forget(self) -> None:
        """Ask the store again: tokens were revoked."""
        self._digests = frozenset()


class Authenticator:
    """Decides by what a peer shows."""

    def __init__(self, door: AuthGuard, tokens: Tokens) -> None:
        self._door = door
        self._tokens = tokens
        self._known = KnownTokens(tokens)

    async def refusal(self, headers: Mapping[str, str], address: str) -> tuple[int, str] | None:
        """Return the HTTP status and the reason if a handshake may not be."""
        if not self._door.admits_origin(headers):
            return 403, "This origin is not in CLARA_GATEWAY_ALLOWED_ORIGINS."
        shown = bearer(headers)
        try:
            if shown is None or await self._is_right(shown):
                return None
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.error("a token cannot be looked up: %s", error, extra=about)
            return 503, "The database fails; try again."
        return (429, _TOO_OFTEN) if self.fails(address) else (401, _WRONG)

    async def register(self, frame: Register, address: str, shown: str | None) -> str | None:
        """Let a node in, or refuse it; `shown` is what the handshake has shown.

        Returns:
            What the node's token is called, if it has shown one.

        Raises:
            Refused: with the frame that says why not.
        """
        secret = shown or frame.secret
        claim, name = await self._claim(frame, secret)
        if claim is Claim.UNKNOWN and self.fails(address):
            raise Refused(ErrorCode.RATE_LIMITED, _TOO_OFTEN)
        if claim is Claim.UNKNOWN and not secret:
            raise Refused(ErrorCode.AUTH_FAILED, _MISSING)
        if claim is not Claim.GRANTED:
            raise Refused(ErrorCode.AUTH_FAILED, _WHY[claim])
        return name

    async def _is_right(self, shown: str | None) -> bool:
        if shown is not None and _is_token(shown):
            return await self._known.has(shown)
        return self._door.admits(shown)

    def fails(self, address: str) -> bool:
        """Count something wrong from an address; return whether there was too much of it before."""
        now = trio.current_time()
        if self._door.is_locked(address, now):
            return True
        if self._door.note_failure(address, now):
            about = catalogue.ADAPTER_REFUSED.about(address=address)
            text = "refused %s too often: for a minute, what else is wrong from there is not logged"
            log.warning(text, address, extra=about)
        return False

    async def _claim(self, frame: Register, secret: str | None) -> tuple[Claim, str | None]:
        token = secret if secret is not None and _is_token(secret) else None
        try:
            if not await self._is_right(secret):
                return Claim.UNKNOWN, None
            return await self._tokens.claim(
                token,
                frame.platform,
                frame.node_id,
                needed=not self._door.has_secret,
            )
        except StoreError as error:
            about = catalogue.STORE_FAILED.about(node_id=frame.node_id)
            log.error("node %r cannot be registered: %s", frame.node_id, error, extra=about)
            message = "The database fails; register again in a moment."
            raise Refused(ErrorCode.PROCESSING_ERROR, message, recoverable=True) from None

    def forget_tokens(self) -> None:
        """Look in the store for what is shown from now on: tokens were revoked."""
        self._known.forget()

    def free(self, platform: str, node_id: str) -> None:
        """Let anybody have a node that is gone for good."""
        self._tokens.free(platform, node_id)


def _is_token(shown: str) -> bool:
    return shown.startswith(PREFIX)
