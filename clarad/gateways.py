"""All that listens: the gateway's port, its socket file, and the control socket."""

import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from clarad import address
from clarad.access import Door
from clarad.admission import Admission
from clarad.config import Settings
from clarad.listeners import UnixEndpoint
from clarad.nurseries.connection import Connection
from clarad.nurseries.control import MAX_CONNECTIONS, Operations, OperatorConnection
from clarad.nurseries.gateway import Endpoint, Gateway
from clarad.nurseries.supervisor import Supervisor
from clarad.store import Tokens
from clarad.systemd import catalogue
from clarad.tls import TlsError, server_context

log = logging.getLogger(__name__)

Connect = Callable[..., Connection]


class Gateways:
    """Makes them, and starts and ends them together."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint[tuple[str, int]],
        *,
        tokens: Tokens,
        connect: Connect,
        operations: Operations,
    ) -> None:
        """`connect` makes an adapter's connection, and is told who decides on its registration."""
        self._door = Door(settings.gateway_secret, settings.gateway_allowed_origins)
        guarded = Admission(self._door, tokens)
        self.port = Gateway(
            endpoint,
            admission=guarded,
            max_connections=settings.gateway_max_connections,
            make_connection=partial(connect, admission=guarded),
            tls=_tls(settings),
        )
        self._all: dict[str, Gateway[Any]] = {"gateway": self.port}
        if settings.gateway_socket is not None:
            self._all["gateway socket"] = Gateway(
                UnixEndpoint(settings.gateway_socket),
                admission=guarded,
                max_connections=settings.gateway_max_connections,
                make_connection=partial(connect, admission=guarded),
            )
        self._control = Gateway(
            UnixEndpoint(address.control_path(settings.state_dir)),
            # The mode of its file is its door; but no page in a browser has business there.
            admission=Admission(Door(None, frozenset()), tokens),
            max_connections=MAX_CONNECTIONS,
            make_connection=partial(OperatorConnection, operations=operations),
        )

    async def start(self, supervisor: Supervisor) -> tuple[str, int]:
        """Take adapters' connections; return the port's address."""
        addresses = [await supervisor.start(name, one.run) for name, one in self._all.items()]
        bound: tuple[str, int] = addresses[0]
        return bound

    async def start_control(self, supervisor: Supervisor) -> Any:
        """Take operators' connections; return the control socket's path."""
        self._all["control"] = self._control
        return await supervisor.start("control", self._control.run)

    def stop_listening(self) -> None:
        """Take no new connection."""
        for one in (*self._all.values(), self._control):
            one.stop_listening()

    def close_all(self) -> None:
        """Close every connection with 1001, after what is queued for it."""
        for one in self._all.values():
            one.close_all()

    async def ended(self, supervisor: Supervisor) -> None:
        """Wait until all connections have ended, after `stop_listening` and `close_all`."""
        for name in self._all:
            await supervisor.ended(name)

    def close_token(self, token: str) -> int:
        """Close the connections of a token that was revoked; return how many they were."""
        return sum(one.close_token(token) for one in self._all.values())

    def apply(self, settings: Settings) -> None:
        """Put reloaded settings in force, a renewed certificate among them."""
        self._door.allowed_origins = settings.gateway_allowed_origins
        for name, one in self._all.items():
            if name != "control":
                one.max_connections = settings.gateway_max_connections
        try:
            self.port.tls = _tls(settings)
        except TlsError as error:  # it was good a moment ago, when the settings were read
            about = catalogue.CONFIG_QUESTIONABLE.about()
            log.error("the certificate stays as it was: %s", error, extra=about)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.gateway_tls_cert is None:
        return None
    return server_context(settings.gateway_tls_cert, settings.gateway_tls_key)
