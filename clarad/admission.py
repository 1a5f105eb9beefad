"""Who is let in: handshakes and registrations, by the secret or by a token in the store."""

import logging
from collections.abc import Mapping
from typing import Final

import trio

from clarad.access import Door, bearer
from clarad.protocol import ErrorCode, Refused, Register
from clarad.store import Claim, StoreError, Tokens
from clarad.store.tokens import PREFIX
from clarad.systemd import catalogue

log = logging.getLogger(__name__)

_TOO_OFTEN: Final = "Too many wrong secrets; wait a minute."
_WRONG: Final = "The secret is wrong; send the gateway's CLARA_GATEWAY_SECRET, or a token of it."
_WHY: Final = {
    Claim.UNKNOWN: _WRONG,
    Claim.NEEDED: "A token is needed; `clarad tokens create` makes one.",
    Claim.OTHER_PLATFORM: "This token is for another platform.",
    Claim.TAKEN: "This node is another adapter's: take another node_id, or have it freed.",
}


class Admission:
    """Decides by what a peer shows."""

    def __init__(self, door: Door, tokens: Tokens) -> None:
        self._door = door
        self._tokens = tokens

    async def refusal(self, headers: Mapping[str, str], address: str) -> tuple[int, str] | None:
        """Return the HTTP status and the reason if a handshake may not be."""
        if not self._door.admits_origin(headers):
            return 403, "This origin is not in CLARA_GATEWAY_ALLOWED_ORIGINS."
        if self._door.is_closed(address, trio.current_time()):
            return 429, _TOO_OFTEN
        shown = bearer(headers)
        if shown is None:
            return None
        if not _is_token(shown):
            is_right = self._door.admits(address, shown, trio.current_time())
            return None if is_right else (401, _WRONG)
        try:
            if await self._tokens.is_known(shown):
                return None
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            log.error("a token cannot be looked up: %s", error, extra=about)
            return 503, "The database fails; try again."
        self._door.note_failure(address, trio.current_time())
        return 401, _WRONG

    async def register(self, frame: Register, address: str, shown: str | None) -> str | None:
        """Let a node in, or refuse it; `shown` is what the handshake has shown.

        Returns:
            What the node's token is called, if it has shown one.

        Raises:
            Refused: with the frame that says why not.
        """
        if self._door.is_closed(address, trio.current_time()):
            raise Refused(ErrorCode.RATE_LIMITED, _TOO_OFTEN)
        secret = shown or frame.secret
        token = secret if secret is not None and _is_token(secret) else None
        if token is None and not self._door.admits(address, secret, trio.current_time()):
            raise Refused(ErrorCode.AUTH_FAILED, _WRONG)
        claim, name = await self._claim(frame, token)
        if claim is Claim.UNKNOWN:
            self._door.note_failure(address, trio.current_time())
        if claim is not Claim.GRANTED:
            raise Refused(ErrorCode.AUTH_FAILED, _WHY[claim])
        return name

    async def _claim(self, frame: Register, token: str | None) -> tuple[Claim, str | None]:
        try:
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

    def free(self, platform: str, node_id: str) -> None:
        """Let anybody have a node that is gone for good."""
        self._tokens.free(platform, node_id)


def _is_token(shown: str) -> bool:
    return shown.startswith(PREFIX)
