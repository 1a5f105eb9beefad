"""A node whose adapter lives under asyncio, in a thread of its own, beside those under Trio."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import anyio
import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from clarad.adapters import Adapter, open_adapter
from tests.soak.ledger import Asked
from tests.soak.line import Line
from tests.soak.nodes import follow
from tests.soak.users import CHANNELS, PLATFORM, Users, frame_of


class UnderAsyncio:
    """A node as `clarad.adapters` makes it; its users are Trio's, as all are."""

    def __init__(self, users: Users, line: Line) -> None:
        self._users = users
        self._line = line
        self._token: trio.lowlevel.TrioToken | None = None
        self._portal: BlockingPortal | None = None
        self._adapter: Adapter | None = None
        self._leave: anyio.Event | None = None

    async def run(self) -> None:
        """Live until the users have had enough."""
        self._token = trio.lowlevel.current_trio_token()
        ready, gone = trio.Event(), trio.Event()
        with start_blocking_portal("asyncio") as self._portal:
            life = self._portal.start_task_soon(self._live, ready)
            life.add_done_callback(lambda life: self._in_trio(self._end, life, gone))
            await ready.wait()
            async with trio.open_nursery() as nursery:
                for channel in range(CHANNELS):
                    nursery.start_soon(self._users.write, channel, self)
            assert self._leave is not None
            self._portal.start_task_soon(self._leave.set)
            await gone.wait()  # its connection goes through this loop, which must not stand still

    def ask(self, message: Asked) -> None:
        assert self._portal is not None
        self._portal.start_task_soon(self._ask, message)  # they begin in this order

    def cancel(self, message: Asked) -> None:
        assert self._portal is not None
        assert self._adapter is not None
        self._portal.start_task_soon(self._adapter.cancel, message.id, "changed their mind")

    def _in_trio(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)

    def _end(self, life: "Future[None]", gone: trio.Event) -> None:
        if not life.cancelled() and (error := life.exception()) is not None:
            self._users.ledger.broken.append(f"the adapter under asyncio has ended: {error!r}")
        gone.set()

    # --- in the other thread ---------------------------------------------------------------------

    async def _live(self, ready: trio.Event) -> None:
        self._leave = anyio.Event()
        name = self._users.name
        async with open_adapter(
            self._line.url, node_id=name, platform=PLATFORM, on_stray=self._users.on_stray
        ) as self._adapter:
            self._in_trio(ready.set)
            await self._leave.wait()

    async def _ask(self, message: Asked) -> None:
        assert self._adapter is not None
        answer = self._adapter.ask(frame_of(message))
        self._in_trio(message.end, await follow(self._adapter, message, answer))
