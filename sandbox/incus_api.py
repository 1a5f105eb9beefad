"""The way to an Incus server: pylxd in threads for its API, and our own connections beside it."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from sandbox.engine import EngineError, in_thread
from sandbox.settings import Settings
from sandbox.streams import WebSocket, answers, connect

T = TypeVar("T")

TIMEOUT: Final = 60
"""Seconds that Incus has for one answer, or for one operation."""


class Api:
    """One Incus server. pylxd is used for plain requests only: its models warn about whatever
    Incus has and LXD has not, and its `execute` polls, has no cap and cannot be ended.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self._calls = trio.CapacityLimiter(8)
        self._kills = trio.CapacityLimiter(4)  # these never queue behind the others
        self.is_local = settings.incus_remote == "local"
        self.where = str(settings.incus_socket) if self.is_local else settings.incus_remote

    @property
    def certificate(self) -> tuple[Path, Path]:
        """Where our certificate and its key are, as for Incus's own client."""
        return (
            self._settings.incus_config / "client.crt",
            self._settings.incus_config / "client.key",
        )

    async def get(self, *path: str, **params: int) -> Any:
        """Return what is at a path below /1.0."""
        return await self.call(lambda api: node(api, path).get(params=params).json()["metadata"])

    async def call(self, function: Callable[[Any], T], *, kill: bool = False) -> T:
        """Call `function` with pylxd's API node for /1.0, in a thread.

        Raises:
            EngineError: Incus refused, or does not answer.
        """

        silent = (
            f"Incus does not answer at {self.where}: start it, or set INCUS_SOCKET or INCUS_REMOTE"
        )

        def call() -> T:
            from pylxd.exceptions import ClientConnectionFailed, LXDAPIException
            from requests import RequestException

            if self.is_local and not answers(self.where):
                raise EngineError(silent)
            try:
                if self._client is None:
                    self._client = self._connect()
                return function(self._client.api)
            except LXDAPIException as error:
                raise EngineError(f"Incus refused: {error}") from error
            except (ClientConnectionFailed, RequestException, OSError) as error:
                if "SSLError" in str(error):
                    raise EngineError(
                        f"Incus at {self.where} shows a certificate that we do not know: put it "
                        f"into {self._server_certificate()}"
                    ) from error
                raise EngineError(silent) from error

        return await in_thread(call, self._kills if kill else self._calls, "Incus")

    def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            self._client.api.session.close()

    async def websocket(self, target: str) -> WebSocket:
        """Open a WebSocket.

        Raises:
            EngineError: Incus refused, or does not answer.
        """
        try:
            socket = WebSocket(await connect(self._address(), self._tls()))
            try:
                await socket.open(target)
            except BaseException:
                await socket.aclose()
                raise
        except (OSError, trio.BrokenResourceError) as error:
            raise EngineError(f"Incus does not let us talk to a sandbox: {error}") from error
        return socket

    def _connect(self) -> Any:
        from pylxd import Client
        from pylxd.client import get_session_for_url

        if self.is_local:
            return Client(endpoint=self.where, timeout=TIMEOUT)
        for file in self.certificate:
            if not file.exists():
                raise EngineError(
                    f"INCUS_REMOTE={self.where} needs a client certificate, and {file} is not "
                    "there: make it with incus remote generate-certificate"
                )
        server = self._server_certificate()
        session = get_session_for_url(
            self.where,
            cert=tuple(map(str, self.certificate)),
            verify=str(server) if server.exists() else True,
        )
        # Otherwise REQUESTS_CA_BUNDLE in the environment goes before what we have said.
        session.trust_env = False
        return Client(endpoint=self.where, session=session, timeout=TIMEOUT)

    def _address(self) -> str | tuple[str, int]:
        if self.is_local:
            return self.where
        host, _, port = self.where.removeprefix("https://").rpartition(":")
        if not port.isdigit():
            host, port = self.where.removeprefix("https://"), "8443"
        return host.strip("[]"), int(port)

    def _server_certificate(self) -> Path:
        """The server's own certificate, where pylxd and Incus's client look for it."""
        return self._settings.incus_config / "servercerts" / f"{self._address()[0]}.crt"

    def _tls(self) -> ssl.SSLContext | None:
        if self.is_local:
            return None
        server = self._server_certificate()
        context = ssl.create_default_context(cafile=str(server) if server.exists() else None)
        # A certificate that is kept for this server is trusted for what it is, not for its names.
        context.check_hostname = not server.exists()
        context.load_cert_chain(*self.certificate)
        return context


def node(api: Any, path: tuple[str, ...]) -> Any:
    """Return pylxd's node for a path below /1.0."""
    for part in path:
        api = api[part]
    return api


def finish(api: Any, response: Any, patience: int = TIMEOUT) -> None:
    """Wait for an operation: a request is accepted at once, and fails later.

    Raises:
        EngineError: with Incus's reason.
    """
    operation = response.json()["metadata"]["id"]
    waited = node(api, ("operations", operation, "wait")).get(
        params={"timeout": patience}, timeout=patience + 5
    )
    found = waited.json()["metadata"]
    if found["status_code"] != 200:
        raise EngineError(f"Incus failed: {found['err'] or 'it takes too long'}")
