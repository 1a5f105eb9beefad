"""What can go wrong between an adapter and the gateway."""


class GatewayError(Exception):
    """The gateway cannot be talked to; the text says why, in one line."""
