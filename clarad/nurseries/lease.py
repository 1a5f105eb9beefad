"""Keeps this daemon's lease on a PostgreSQL database that several daemons share.

The lease is renewed in a task and on a connection of its own, so that no other work delays it. Each
renewal also takes over from the daemons whose leases have expired. Another task adopts their work:
that can take long, and must not delay a renewal either.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from clarad.store import Heartbeat, LeaseLost, MembersChanged, Notice, StoreError
from clarad.systemd import catalogue

if TYPE_CHECKING:  # it needs psycopg, which is not everywhere
    from clarad.store.cluster.membership import Membership

log = logging.getLogger(__name__)

T = TypeVar("T")

RENEWALS: Final = 6
"""Renewals in the length of a lease: the time between two, and what each may take at most."""

VALID_PART: Final = 2 / 3
"""The part of a lease after which a daemon that cannot renew it ends its work. It has the rest of
the lease to end it in, so that nothing still runs when another daemon takes over."""

RETRY: Final = 1.0
"""Seconds between attempts to reach the database, to take over from a daemon that still has a
transaction open, and to adopt the work of one that was taken over from."""

Inherit = Callable[[Collection[int]], Awaitable[None]]


class Lease:
    """Renews the lease, adopts the work of dead daemons, and reports when the lease is lost."""

    def __init__(
        self,
        members: "Membership",
        *,
        inherit: Sequence[Inherit],
        on_heartbeat: Callable[[Heartbeat], None],
        on_notice: Callable[[Notice | None], None],
        tasks: Callable[[], str],
        on_loss: Callable[[], None],
    ) -> None:
        """`inherit` are called one after the other, with the epochs whose work to adopt.

        `on_heartbeat` is called after each renewal; `on_notice` with what other daemons send, and
        with `None` when a notice may have been missed. `tasks` returns a digest of the tasks that
        this daemon knows. `on_loss` must end all work at once: another daemon may do it by now.
        """
        self._members = members
        self._epoch = members.epoch
        self._inherit = inherit
        self._adopted: dict[Inherit, frozenset[int]] = {}
        self._on_heartbeat = on_heartbeat
        self._on_notice = on_notice
        self._tasks = tasks
        self._on_loss = on_loss
        self._limiter = trio.CapacityLimiter(1)
        self._valid_until = 0.0
        self.others = 0
        """How many other daemons shared the database at the last renewal."""
        self._inherited: frozenset[int] = frozenset()
        self._has_inherited = trio.Event()
        self._address = ""
        self._ready = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Begin an epoch and renew its lease until cancelled; then give the lease up.

        The supervisor may run this again after a failure: the epoch goes on.

        Raises:
            StoreError: the database cannot be reached at the start.
        """
        if self._epoch.id is None:
            await self._call(self._members.connect)
            await self._call(self._members.join)
            heartbeat = await self._renew()
            assert self._epoch.id is not None
            self._epoch.owners = heartbeat.inherited | {self._epoch.id}
            # The start itself recovers what was left before it.
            self._adopted = dict.fromkeys(self._inherit, heartbeat.inherited)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_over)
                nursery.start_soon(self._watch)
                task_status.started()
                await self._renew_until_lost()
        finally:
            if trio.current_effective_deadline() == -math.inf:  # not if it is started again
                with trio.CancelScope(shield=True):
                    await self._leave()

    def set_ready(self, address: str) -> None:
        """Note that the daemon has started, at this address: from now on it can adopt work."""
        self._address = address
        self._ready.set()

    async def _renew_until_lost(self) -> None:
        """Renew the lease, and receive notices between renewals, until the lease is lost."""
        while not self._epoch.is_lost:
            try:
                if not self._members.is_connected:
                    await self._call(self._members.connect)
                    self._on_notice(None)
                heartbeat = await self._renew()
                await self._listen(min(RETRY, self._pace) if heartbeat.is_held_up else self._pace)
            except LeaseLost as error:
                self._lose(str(error))
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("the lease is not renewed, the database failed: %s", error, extra=about)
                await trio.sleep(min(RETRY, self._pace))
        await trio.sleep_forever()

    async def _watch(self) -> None:
        """Give the lease up once another daemon might already own it.

        A renewal may hang, so this does not depend on its answer. It looks at least once per pace:
        a renewal can also shorten the lease, when another daemon joins.
        """
        while not self._epoch.is_lost:
            if (left := self._valid_until - trio.current_time()) > 0:
                await trio.sleep(min(left, self._pace))
            else:
                self._lose("it was not renewed in time, and others may take over")

    @property
    def _pace(self) -> float:
        return self._members.lease / RENEWALS

    async def _renew(self) -> Heartbeat:
        asked_at = trio.current_time()
        adopted = self._inherited & self._epoch.owners
        heartbeat = await self._call(self._renew_in_thread, adopted)
        self._valid_until = asked_at + heartbeat.lasts * VALID_PART
        if heartbeat.others != self.others:
            log.info("other daemons on the database: %d", heartbeat.others)
            self.others = heartbeat.others
        if new := heartbeat.inherited - self._inherited:
            log.info("taking over what %d daemons have left", len(new))
        self._inherited = heartbeat.inherited
        self._has_inherited.set()
        self._on_heartbeat(heartbeat)
        return heartbeat

    def _renew_in_thread(self, adopted: Collection[int]) -> Heartbeat:
        return self._members.renew(address=self._address, tasks=self._tasks(), adopted=adopted)

    async def _listen(self, seconds: float) -> None:
        """Pass notices on until the next renewal is due, or the members have changed."""
        with trio.move_on_after(seconds):
            while True:
                notices = self._members.receive()
                for notice in notices:
                    self._on_notice(notice)
                if any(isinstance(notice, MembersChanged) for notice in notices):
                    return
                await trio.lowlevel.wait_readable(self._members.fileno())

    async def _take_over(self) -> None:
        """Have each of `inherit` adopt each inherited epoch once.

        `_adopted` says how far each has got: if one raises, and the supervisor starts this again,
        none adopts an epoch a second time.
        """
        await self._ready.wait()
        while True:
            self._has_inherited = trio.Event()
            inherited = self._inherited
            self._epoch.owners |= inherited
            for inherit, before in self._adopted.items():
                if new := inherited - before:
                    await self._retry(inherit, new)
                    self._adopted[inherit] = before | new
            await self._has_inherited.wait()

    async def _retry(self, inherit: Inherit, epochs: Collection[int]) -> None:
        while True:
            try:
                return await inherit(epochs)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("what was taken over cannot be read yet: %s", error, extra=about)
                await trio.sleep(RETRY)

    def _lose(self, why: str) -> None:
        about = catalogue.LEASE_LOST.about()
        log.critical("the lease is lost: %s; ending all that goes on here", why, extra=about)
        self._epoch.is_lost = True
        self._on_loss()

    async def _leave(self) -> None:
        try:
            if not self._epoch.is_lost:
                if not self._members.is_connected:  # a renewal was cut off in its middle
                    await self._call(self._members.connect)
                await self._call(self._members.leave)
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            text = "the other daemons are not told that this one ends: %s"
            log.warning(text, error, extra=about)
        finally:
            self._members.close()

    async def _call(self, question: Callable[..., T], *arguments: Any) -> T:
        """Call a method of `Membership` in a thread, for the time between two renewals at most.

        The thread is never abandoned: a timeout, or a cancellation, shuts the connection down, and
        the call then fails by itself.
        """
        answered = trio.Event()

        def ask() -> T | StoreError:
            try:
                return question(*arguments)
            except StoreError as error:
                return error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_if_slow, answered)
            with trio.CancelScope(shield=True):
                answer = await trio.to_thread.run_sync(ask, limiter=self._limiter)
            answered.set()
            nursery.cancel_scope.cancel("answered")
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def _cut_if_slow(self, answered: trio.Event) -> None:
        try:
            await trio.sleep(self._pace)
        finally:
            if not answered.is_set():
                self._members.cut()
