"""The lease: keeps this daemon one of those that share a PostgreSQL database, while it can.

It is renewed on a connection and in a task of its own, so that nothing that the daemon works on
delays it. With each renewal the daemon looks whether another one has failed to renew its lease, and
takes over from it. What is taken over is gone on with in a task beside, because that may take long.
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

SURE: Final = 2 / 3
"""The part of its lease after which a daemon that cannot renew it ends its work: the rest is for
the ending, so that nothing of it is left when another daemon begins."""

RETRY: Final = 1.0
"""Seconds between attempts to reach the database, to take over from a life that is in the middle of
a transaction, and to read what has been taken over."""

Inherit = Callable[[Collection[int]], Awaitable[None]]


class Lease:
    """Keeps the daemon's life going, and tells the daemon when it has ended."""

    def __init__(
        self,
        members: "Membership",
        *,
        inherit: Sequence[Inherit],
        looked: Callable[[Heartbeat], None],
        heard: Callable[[Notice | None], None],
        tasks: Callable[[], str],
        lose: Callable[[], None],
    ) -> None:
        """`inherit` go on, one after the other, with the work of lives that were taken over.

        `looked` is called after each renewal, `heard` with what other daemons say, and with `None`
        when something may have been missed. `tasks` says which tasks this daemon knows. `lose` is
        called when all that goes on here has to end: others do it by now, or soon.
        """
        self._members = members
        self._life = members.life
        self._inherit = inherit
        self._gone_on: dict[Inherit, frozenset[int]] = {}
        self._looked = looked
        self._heard = heard
        self._tasks = tasks
        self._on_loss = lose
        self._limiter = trio.CapacityLimiter(1)
        self._sure_until = 0.0
        self.others = 0
        """How many other daemons shared the database at the last renewal."""
        self._inherited: frozenset[int] = frozenset()
        self._grown = trio.Event()
        self._address = ""
        self._ready = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Begin a life and keep it until cancelled; its work is then another daemon's.

        Raises:
            StoreError: the database cannot be reached at the start.
        """
        if self._life.id is None:
            await self._ask(self._members.connect)
            await self._ask(self._members.join)
            look = await self._renew()
            assert self._life.id is not None
            self._life.owners = look.inherited | {self._life.id}
            # What was left before the start is the start's to recover.
            self._gone_on = dict.fromkeys(self._inherit, look.inherited)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_over)
                nursery.start_soon(self._watch)
                task_status.started()
                await self._keep()
        finally:
            if trio.current_effective_deadline() == -math.inf:  # not if it is started again
                with trio.CancelScope(shield=True):
                    await self._leave()

    def go_on(self, address: str) -> None:
        """The daemon has started, at this address: it can go on with what is taken over."""
        self._address = address
        self._ready.set()

    async def _keep(self) -> None:
        """Renew the lease and listen, until it is lost."""
        while not self._life.is_lost:
            try:
                if not self._members.is_connected:
                    await self._ask(self._members.connect)
                    self._heard(None)
                look = await self._renew()
                await self._listen(min(RETRY, self._pace) if look.is_held_up else self._pace)
            except LeaseLost as error:
                self._lose(str(error))
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("the lease is not renewed, the database failed: %s", error, extra=about)
                await trio.sleep(min(RETRY, self._pace))
        await trio.sleep_forever()

    async def _watch(self) -> None:
        """Lose the lease as soon as it is not sure any more."""
        while not self._life.is_lost:
            if (left := self._sure_until - trio.current_time()) > 0:
                await trio.sleep(min(left, self._pace))  # it may be shortened meanwhile
            else:
                self._lose("it was not renewed in time, and others may take over")

    @property
    def _pace(self) -> float:
        return self._members.lease / RENEWALS

    async def _renew(self) -> Heartbeat:
        asked_at = trio.current_time()
        seen_to = self._inherited & self._life.owners
        look = await self._ask(self._look, seen_to)
        self._sure_until = asked_at + look.lasts * SURE
        if look.others != self.others:
            log.info("other daemons on the database: %d", look.others)
            self.others = look.others
        if new := look.inherited - self._inherited:
            log.info("taking over what %d lives of daemons have left", len(new))
        self._inherited = look.inherited
        self._grown.set()
        self._looked(look)
        return look

    def _look(self, seen_to: Collection[int]) -> Heartbeat:
        return self._members.look(address=self._address, tasks=self._tasks(), seen_to=seen_to)

    async def _listen(self, seconds: float) -> None:
        """Pass on what is said until it is time for a renewal, or somebody has come or gone."""
        with trio.move_on_after(seconds):
            while True:
                notices = self._members.heard()
                for notice in notices:
                    self._heard(notice)
                if any(isinstance(notice, MembersChanged) for notice in notices):
                    return
                await trio.lowlevel.wait_readable(self._members.fileno())

    async def _take_over(self) -> None:
        """Go on with the work of each life that is inherited, once.

        If that raises, it is gone on with when this is started again.
        """
        await self._ready.wait()
        while True:
            self._grown = trio.Event()
            inherited = self._inherited
            self._life.owners |= inherited
            for inherit, before in self._gone_on.items():
                if new := inherited - before:
                    await self._insist(inherit, new)
                    self._gone_on[inherit] = before | new
            await self._grown.wait()

    async def _insist(self, inherit: Inherit, lives: Collection[int]) -> None:
        while True:
            try:
                return await inherit(lives)
            except StoreError as error:
                about = catalogue.STORE_FAILED.about()
                log.error("what was taken over cannot be read yet: %s", error, extra=about)
                await trio.sleep(RETRY)

    def _lose(self, why: str) -> None:
        about = catalogue.LEASE_LOST.about()
        log.critical("the lease is lost: %s; ending all that goes on here", why, extra=about)
        self._life.is_lost = True
        self._on_loss()

    async def _leave(self) -> None:
        try:
            if not self._life.is_lost:
                if not self._members.is_connected:  # a renewal was cut off in its middle
                    await self._ask(self._members.connect)
                await self._ask(self._members.leave)
        except StoreError as error:
            about = catalogue.STORE_FAILED.about()
            text = "the other daemons are not told that this one ends: %s"
            log.warning(text, error, extra=about)
        finally:
            self._members.close()

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Ask the database in a thread; what takes too long, or is cancelled, is cut off."""
        answered = trio.Event()

        def ask() -> T | StoreError:
            try:
                return question(*arguments)
            except StoreError as error:
                return error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_off, answered)
            with trio.CancelScope(shield=True):
                answer = await trio.to_thread.run_sync(ask, limiter=self._limiter)
            answered.set()
            nursery.cancel_scope.cancel("answered")
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def _cut_off(self, answered: trio.Event) -> None:
        try:
            await trio.sleep(self._pace)
        finally:
            if not answered.is_set():
                self._members.cut()
