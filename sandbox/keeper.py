"""Keeps sandboxes: some warm, one for each owner; ends idle ones and removes leftovers."""

import logging
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Final

import trio

from sandbox.disk import has_disk_limit
from sandbox.engine import Engine, EngineError, FullError, GoneError, SandboxError
from sandbox.python import Interpreter
from sandbox.sandbox import Sandbox
from sandbox.session import Session

log = logging.getLogger(__name__)

SWEEP: Final = 60.0
"""Seconds between searches for leftovers."""

_STOPPED: Final = "the keeper of the sandboxes does not run; try again when it does"
_UNLIMITED: Final = (
    "the engine's storage keeps no sandbox to its disk size (SANDBOX_DISK): Incus's dir never "
    "does, nor does btrfs with inconsistent quotas; zfs, lvm and btrfs with simple quotas do"
)

MAX_PAUSE: Final = 30.0
"""Seconds at most before the keeper retries to make a warm sandbox."""


@dataclass(frozen=True)
class Status:
    """One sandbox, for an operator. `owner` is None for a warm one; `idle` is in seconds."""

    name: str
    owner: str | None
    idle: float
    running: int


class Reservation:
    """One owner's sandbox, or the wait for it."""

    def __init__(self) -> None:
        self.sandbox: Sandbox | None = None
        self.interpreter: Interpreter | None = None
        self.failure: SandboxError | None = None
        self.settled = trio.Event()

    def settle(self, sandbox: Sandbox) -> None:
        """Assign a sandbox to the owner, and wake those who wait for it."""
        self.sandbox = sandbox
        self.interpreter = Interpreter(sandbox)
        self.settled.set()


class Keeper:
    """The sandboxes of one engine with this keeper's label."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        pool: int,
        capacity: int,
        idle_timeout: float,
        network: str = "none",
    ) -> None:
        """`name` is the label's value: the same after a restart, and no other keeper's."""
        self.engine = engine
        self.name = name
        self.network = network
        self.warnings: list[str] = []
        self._pool = pool
        self._capacity = capacity
        self._idle_timeout = idle_timeout
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[str, trio.CancelScope] = {}  # by name, from before the sandbox exists
        self._ended: dict[str, trio.Event] = {}
        self._warm: deque[Sandbox] = deque()
        self._reservations: dict[str, Reservation] = {}
        self._waiting: deque[Reservation] = deque()
        self._starting = 0
        self._failures = 0
        self._failure: SandboxError | None = None
        self._settled = trio.Event()  # the first sandbox is ready, or cannot be made

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sandboxes until cancelled; all of them have ended when this returns.

        Ready when the engine has been checked, leftovers are gone and one sandbox is warm.

        Raises:
            EngineError: something is missing; the text says how to get it.
        """
        failure: SandboxError | None = None
        try:
            self.warnings = await self.engine.check()
            await self.sweep()
            async with trio.open_nursery() as self._nursery:
                failure = await self._warm_up()
                if failure is None:
                    task_status.started()
                    await self._keep_sweeping()
                self._nursery.cancel_scope.cancel("the first sandbox cannot be made")
        finally:
            self._nursery = None
            self._settled = trio.Event()
            while self._waiting:
                self._fail(self._waiting.popleft(), EngineError(_STOPPED))
            self.engine.close()
        if failure is not None:
            raise failure

    async def acquire(self, owner: str) -> Sandbox:
        """Return the owner's sandbox; a new owner gets a warm one, or waits for a new one.

        Raises:
            FullError: all sandboxes belong to other owners.
            EngineError: none can be made.
        """
        return (await self._acquire(owner))[0]

    async def interpreter(self, owner: str) -> Interpreter:
        """Return the Python of the owner's sandbox; raises what `acquire` does."""
        return (await self._acquire(owner))[1]

    async def delete(self, owner: str) -> None:
        """End the owner's sandbox, with its files, and wait until it is gone."""
        reservation = self._reservations.get(owner)
        if reservation is None:
            return
        await (
            reservation.settled.wait()
        )  # otherwise one that is being made would stay without an owner
        if reservation.sandbox is not None and self._reservations.get(owner) is reservation:
            del self._reservations[owner]
            await self._end(reservation.sandbox)

    async def reset(self, owner: str) -> Sandbox:
        """Replace the owner's sandbox by a new one; raises what `acquire` does."""
        await self.delete(owner)
        return await self.acquire(owner)

    def status(self) -> list[Status]:
        """Return all sandboxes, the warm ones last."""
        now = trio.current_time()
        owned = [
            (o, reservation.sandbox)
            for o, reservation in sorted(self._reservations.items())
            if reservation.sandbox
        ]
        return [
            Status(one.name, owner, 0.0 if one.is_busy else now - one.used_at, one.session.running)
            for owner, one in [*owned, *((None, one) for one in self._warm)]
        ]

    async def _acquire(self, owner: str) -> tuple[Sandbox, Interpreter]:
        reservation = self._reservations.get(owner)
        if reservation is None or (reservation.sandbox is not None and reservation.sandbox.is_lost):
            reservation = self._reservations[owner] = Reservation()
            self._assign(owner, reservation)
        await reservation.settled.wait()
        if reservation.failure is not None:
            raise reservation.failure
        assert reservation.sandbox is not None
        assert reservation.interpreter is not None
        reservation.sandbox.used_at = trio.current_time()
        return reservation.sandbox, reservation.interpreter

    def _assign(self, owner: str, reservation: Reservation) -> None:
        """Assign a warm sandbox, or queue for a new one."""
        while self._warm:
            sandbox = self._warm.popleft()
            if not sandbox.is_lost:
                reservation.settle(sandbox)
                self._refill()
                return
        if self._nursery is None:
            self._fail(reservation, EngineError(_STOPPED))
        elif self._starting <= len(self._waiting) and len(self._scopes) >= self._capacity:
            idle = f"they end {self._idle_timeout:g} s after their last use"
            self._fail(
                reservation,
                FullError(
                    f"all {self._capacity} sandboxes are taken: {idle}; or raise SANDBOX_MAX"
                ),
            )
        else:
            self._waiting.append(reservation)
            self._refill()

    def _fail(self, reservation: Reservation, failure: SandboxError) -> None:
        """Fail everybody who waits for a reservation; the next `acquire` makes a new one."""
        reservation.failure = failure
        reservation.settled.set()
        for owner in [owner for owner, one in self._reservations.items() if one is reservation]:
            del self._reservations[owner]

    def _refill(self) -> None:
        """Start sandboxes for all queued reservations and for the gaps in the pool."""
        assert self._nursery is not None
        wanted = len(self._waiting) + max(self._pool - len(self._warm), 0)
        while self._starting < wanted and len(self._scopes) < self._capacity:
            self._starting += 1
            self._nursery.start_soon(self._keep_one, self._new_name())

    def _new_name(self) -> str:
        name = f"{self.name}-{secrets.token_hex(4)}"
        self._scopes[name] = trio.CancelScope()
        self._ended[name] = trio.Event()
        return name

    async def _warm_up(self) -> SandboxError | None:
        """Make the first sandbox of the pool; return why that failed, or `None`."""
        if self._pool == 0:
            return None
        self._refill()
        await self._settled.wait()
        return self._failure

    async def _keep_sweeping(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            try:
                await self.sweep()
            except EngineError as error:
                log.warning("leftovers are not looked for: %s", error)

    async def _keep_one(self, name: str) -> None:
        """Keep a sandbox; if it cannot be made, fail the reservation that has waited longest."""
        failure = await self._keep(name)
        if failure is not None:
            if self._waiting:
                self._fail(self._waiting.popleft(), failure)
            elif self._settled.is_set():
                log.warning("no sandbox can be made: %s", failure)
            self._failure = failure
            self._settled.set()
            self._failures = min(self._failures + 1, 10)
            await trio.sleep(min(0.5 * 2**self._failures, MAX_PAUSE))
        self._refill()

    async def _keep(self, name: str) -> SandboxError | None:
        """Make a sandbox, hand it out, keep it until it ends, and remove it.

        Returns why it could not be made, or `None`. All exceptions stay in here: one that reached
        the keeper's nursery would end all sandboxes.
        """
        failure: SandboxError | None = None
        is_starting = True
        try:
            with self._scopes[name] as scope:
                session = Session(await self.engine.create(name))
                async with trio.open_nursery() as nursery:
                    try:
                        await nursery.start(session.serve)
                        sandbox = Sandbox(name, self.engine, session)
                        await self._verify_disk(sandbox)
                    except GoneError as error:
                        failure = EngineError(str(error))
                        scope.cancel("it did not start")
                    else:
                        is_starting = False
                        self._starting -= 1
                        self._failures = 0
                        self._hand_out(sandbox)
                        nursery.start_soon(self._watch_idle, sandbox, scope)
                        await session.ended.wait()
                        scope.cancel("its agent has gone")
        except* EngineError as group:
            failure = EngineError(str(group.exceptions[0]))
        except* Exception:
            log.exception("the sandbox %s failed", name)
            if is_starting:
                failure = EngineError("a sandbox failed while it was made; the log says why")
        finally:
            if is_starting:
                self._starting -= 1
            with trio.CancelScope(shield=True):
                await self._remove(name)
        return failure

    async def _verify_disk(self, sandbox: Sandbox) -> None:
        """Warn if a sandbox can fill the disk; it is used all the same.

        Every sandbox is checked, since some storage stops enforcing limits while it runs: btrfs
        does when its quotas become inconsistent. Raises `GoneError` if the sandbox ends meanwhile.
        """
        size = self.engine.disk_to_verify
        if size is None or await has_disk_limit(sandbox, size) or _UNLIMITED in self.warnings:
            return
        self.warnings.append(_UNLIMITED)
        log.warning("%s", _UNLIMITED)

    def _hand_out(self, sandbox: Sandbox) -> None:
        if self._waiting:
            self._waiting.popleft().settle(sandbox)
        else:
            self._warm.append(sandbox)
        self._settled.set()

    async def _watch_idle(self, sandbox: Sandbox, scope: trio.CancelScope) -> None:
        """End a sandbox that its owner has not used for long; a warm one is never idle."""
        while True:
            await trio.sleep_until(sandbox.used_at + self._idle_timeout)
            is_warm = sandbox in self._warm
            if is_warm or sandbox.is_busy:
                sandbox.used_at = trio.current_time()
            elif trio.current_time() >= sandbox.used_at + self._idle_timeout:
                scope.cancel("nobody has used it for long")
                return

    async def _end(self, sandbox: Sandbox) -> None:
        self._scopes[sandbox.name].cancel("its owner has done with it")
        await self._ended[sandbox.name].wait()

    async def _remove(self, name: str) -> None:
        """Drop all references to a sandbox that has ended, and destroy it in the engine."""
        for owner, reservation in list(self._reservations.items()):
            if reservation.sandbox is not None and reservation.sandbox.name == name:
                del self._reservations[owner]
        self._warm = deque(one for one in self._warm if one.name != name)
        try:
            await self.engine.destroy(name)
        except EngineError as error:
            log.warning("the sandbox %s is left for later: %s", name, error)
        del self._scopes[name]
        self._ended.pop(name).set()

    async def sweep(self) -> int:
        """Remove the sandboxes that an earlier keeper with this name has left, as a kill does.

        Returns how many they were. Raises `EngineError`.
        """
        left = [name for name in await self.engine.names() if name not in self._scopes]
        for name in left:
            log.warning("removing the sandbox %s, which was left behind", name)
            await self.engine.destroy(name)
        return len(left)
