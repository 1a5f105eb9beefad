"""What can go wrong between an adapter and the gateway."""


class GatewayError(Exception):
    """The gateway cannot be talked to; the text says why, in one line."""


class AuthError(GatewayError):
    """The gateway refuses the secret or token, or asks for one."""


class UnansweredError(GatewayError):
    """The gateway has gone after it had accepted a message; it runs it, so do not send it anew."""
