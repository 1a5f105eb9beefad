"""The client side of the wire: for whoever writes an adapter, and the terminal adapter."""

from clarad.adapters.client import GatewayClient, GatewayError, open_gateway

__all__ = ["GatewayClient", "GatewayError", "open_gateway"]
