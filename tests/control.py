"""A control socket, and behind it operations that a test can hold anywhere."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import trio
from trio_websocket import wrap_client_stream

from clarad.nurseries.control import OnStarted, OnText, OperatorConnection
from clarad.nurseries.gateway import Gateway
from clarad.protocol.control import Refused, Report
from clarad.store import Tokens
from clarad.transport.auth import Authenticator
from clarad.transport.listeners import UnixEndpoint, socket_name
from clarad.transport.outbox import outbox_budget
from tests.peer import Peer


class ScriptedOperations:
    """A task runs until its `release`, in a nursery that is not the connection's."""

    long_text = "ä" * 500_000

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.asked: list[tuple[object, ...]] = []
        self.release: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.ended: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.abandoned = trio.Event()

    async def reload(self) -> Report:
        self.asked.append(("reload",))
        return Report("reloaded: 2 hooks, 1 task")

    async def overview(self, of: str) -> Report:
        self.asked.append(("overview", of))
        return Report("", rows=[])

    async def run_task(self, name: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        self.asked.append(("run_task", name, *caused_by))
        match name:
            case "unknown":
                raise Refused(["there is no task 'unknown'", "there are no tasks at all"])
            case "crash":
                raise RuntimeError("a path of the host: /etc/passwd")
            case "unprintable":
                return Report("\udcff")
            case "long":
                return Report(self.long_text)
        self._nursery.start_soon(self._run, name)
        started(f"run-{name}")
        try:
            await self.ended[name].wait()
        except trio.Cancelled:
            self.abandoned.set()
            raise
        return Report(f"{name} has ended", run=f"run-{name}", outcome="completed")

    async def pause_task(self, name: str) -> Report:
        self.asked.append(("pause_task", name))
        return Report(f"{name} is paused")

    async def resume_task(self, name: str) -> Report:
        self.asked.append(("resume_task", name))
        return Report(f"{name} is resumed")

    async def replay_run(self, run: str, _caused_by: Sequence[str], started: OnStarted) -> Report:
        self.asked.append(("replay_run", run))
        started(f"again-{run}")
        return Report(f"{run} was replayed", run=f"again-{run}", outcome="failed")

    async def status(self) -> Report:
        return Report("all is well")

    def sandbox_status(self) -> Report:
        return Report("", rows=[{"name": "box-1", "owner": None, "idle": 1.5, "running": 0}])

    async def sandbox_exec(self, owner: str, argv: Sequence[str], say: OnText) -> Report:
        self.asked.append(("sandbox_exec", owner, *argv))
        if owner == "nobody":
            raise Refused(["all 16 sandboxes are taken"])
        for piece in "out\n" * (10_000 if owner == "hasty" else 1):
            say("stdout", piece)
        say("stderr", "err\n")
        try:
            await self.release[owner].wait()
        except trio.Cancelled:
            self.abandoned.set()
            raise
        return Report("7 bytes were cut out of the output", exit_status=-9)

    async def sandbox_reset(self, owner: str) -> Report:
        self.asked.append(("sandbox_reset", owner))
        return Report(f"{owner} has no sandbox any more")

    async def sandbox_prune(self) -> Report:
        self.asked.append(("sandbox_prune",))
        return Report("removed 2 sandboxes")

    async def close_token(self, token: str) -> Report:
        self.asked.append(("close_token", token))
        return Report("1 connection of it closed")

    async def _run(self, name: str) -> None:
        await self.release[name].wait()
        self.ended[name].set()


class Control:
    """A control socket that is served, and the clients that a test has opened."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.operations = ScriptedOperations(nursery)
        self.gateway = Gateway(
            UnixEndpoint(path),
            authenticator=Authenticator(None, frozenset(), cast(Tokens, None)),
            max_connections=8,
            make_connection=partial(
                OperatorConnection, operations=self.operations, outboxes=outbox_budget()
            ),
        )
        self._nursery = nursery
        self._peers: list[Peer] = []

    async def open_stream(self) -> trio.SocketStream:
        """Connect, and say nothing."""
        with socket_name(self.path) as name:
            return await trio.open_unix_socket(name)

    async def connect(self) -> Peer:
        stream = await self.open_stream()
        peer = Peer(await wrap_client_stream(self._nursery, stream, "x", "/"))
        self._peers.append(peer)
        return peer

    async def stop(self) -> None:
        """End as the daemon does, and drop what is left."""
        self.gateway.stop_listening()
        self.gateway.close_all()
        for peer in self._peers:
            await peer.drop()
