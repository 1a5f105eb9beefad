"""All that listens: the gateway's port, its socket file, and the control socket."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from clarad.config import Settings, discovery
from clarad.limits.memory import MemoryBudget
from clarad.nurseries.connection import Connection
from clarad.nurseries.control import MAX_CONNECTIONS, Operations, OperatorConnection
from clarad.nurseries.gateway import Gateway
from clarad.nurseries.supervisor import Supervisor
from clarad.protocol import MAX_FIRST_FRAME
from clarad.store import StoreError, Tokens
from clarad.transport.auth import Authenticator
from clarad.transport.listeners import Endpoint, UnixEndpoint
from clarad.transport.tls import server_context

_PORT: Final = "gateway"
_SOCKET: Final = "gateway socket"
_CONTROL: Final = "control"


class Servers:
    """Makes the gateways, and starts and stops them together."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint[tuple[str, int]],
        *,
        tokens: Tokens,
        connect: Callable[..., Connection],
        operations: Operations,
        outboxes: MemoryBudget,
    ) -> None:
        """`connect` makes an adapter's connection; it is passed the `authenticator`.

        Raises:
            TlsError: the certificate or its key cannot be used.
        """
        self._tokens = tokens
        self._authenticator = authenticator = Authenticator(
            settings.gateway_secret, settings.gateway_allowed_origins, tokens
        )
        make_connection = partial(connect, authenticator=authenticator)
        self.port = Gateway(
            endpoint,
            authenticator=authenticator,
            max_connections=settings.gateway_max_connections,
            make_connection=make_connection,
            max_first_frame=MAX_FIRST_FRAME,
            tls=server_context(settings),
            proxies=settings.trusted_proxies,
        )
        self._socket: Gateway[Path] | None = None
        if settings.gateway_socket is not None:
            self._socket = Gateway(
                UnixEndpoint(settings.gateway_socket),
                authenticator=authenticator,
                max_connections=settings.gateway_max_connections,
                make_connection=make_connection,
                max_first_frame=MAX_FIRST_FRAME,
                proxies=settings.trusted_proxies,
            )
        self._control = Gateway(
            UnixEndpoint(discovery.control_path(settings.state_dir)),
            # The mode of the socket file decides who may connect; web pages may not.
            authenticator=Authenticator(None, frozenset(), tokens),
            max_connections=MAX_CONNECTIONS,
            make_connection=partial(OperatorConnection, operations=operations, outboxes=outboxes),
            spare_descriptors=0,
        )

    async def start(self, supervisor: Supervisor) -> tuple[str, int]:
        """Accept adapters' connections; return the port's address."""
        host, port = await supervisor.start(_PORT, self.port.run)
        if self._socket is not None:
            await supervisor.start(_SOCKET, self._socket.run)
        return host, port

    async def start_control(self, supervisor: Supervisor) -> Path:
        """Accept operators' connections; return the control socket's path."""
        path: Path = await supervisor.start(_CONTROL, self._control.run)
        return path

    def stop_listening(self) -> None:
        """Accept no new connections."""
        for gateway in self._all().values():
            gateway.stop_listening()

    def close_all(self) -> None:
        """Close every connection with 1001, after what is queued for it."""
        for gateway in self._all().values():
            gateway.close_all()

    async def ended(self, supervisor: Supervisor) -> None:
        """Wait until all connections have ended, after `stop_listening` and `close_all`."""
        for name in self._all():
            await supervisor.ended(name)

    async def close_token(self, token: str) -> int:
        """Close the connections of a revoked token; return how many there were."""
        self._authenticator.forget_tokens()
        with suppress(StoreError):
            await self._tokens.caught_up()  # a node may be registering with the token
        await trio.lowlevel.checkpoint()  # let that node's task run before its connection closes
        return sum(gateway.close_token(token) for gateway in self._of_adapters())

    async def close_revoked(self) -> None:
        """Close the connections of all tokens that were revoked.

        Raises:
            StoreError: the database fails; none is closed.
        """
        self._authenticator.forget_tokens()
        await self._tokens.caught_up()
        await trio.lowlevel.checkpoint()
        tokens = {token for gateway in self._of_adapters() for token in gateway.tokens()}
        if tokens:
            revoked = await self._tokens.revoked(tokens)
            for gateway in self._of_adapters():
                gateway.close_tokens(revoked)

    def apply(self, settings: Settings, tls: ssl.SSLContext | None) -> None:
        """Put reloaded settings in force, a renewed certificate among them."""
        self._authenticator.allowed_origins = settings.gateway_allowed_origins
        self.port.tls = tls
        for gateway in self._of_adapters():
            gateway.max_connections = settings.gateway_max_connections
            gateway.proxies = settings.trusted_proxies

    def _of_adapters(self) -> list[Gateway[tuple[str, int]] | Gateway[Path]]:
        return [self.port] if self._socket is None else [self.port, self._socket]

    def _all(self) -> dict[str, Gateway[tuple[str, int]] | Gateway[Path]]:
        names = (_PORT, _SOCKET)
        return {**dict(zip(names, self._of_adapters(), strict=False)), _CONTROL: self._control}
