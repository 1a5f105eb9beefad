"""The composition root: builds the parts, connects them, and runs and stops the tree of scopes."""

import os
import socket
import ssl
from collections.abc import Collection
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

import trio
from sqlalchemy import Engine

from clarad import log
from clarad.app.budgets import CANCEL_BUDGET, CLOSE_BUDGET, HOOKS_BUDGET, stop_budget
from clarad.app.operations import Operations
from clarad.app.peers import Peers
from clarad.app.servers import Servers
from clarad.automation.definitions import NOTHING, Definitions
from clarad.config import Settings, discovery, instance
from clarad.config.envfile import Overlay
from clarad.delivery.redelivery import Redelivery
from clarad.delivery.registry import Nodes
from clarad.events import Bus, EventType
from clarad.limits.concurrency import Slots
from clarad.limits.rate import Rates
from clarad.nurseries.connection import Connection
from clarad.nurseries.hooks import Hooks
from clarad.nurseries.lease import Lease
from clarad.nurseries.retention import Sweeper
from clarad.nurseries.sandboxes import Sandboxes
from clarad.nurseries.scheduler import Scheduler, wall_clock
from clarad.nurseries.supervisor import Supervisor, open_supervisor
from clarad.nurseries.task_runs import TaskRunner
from clarad.nurseries.turns import Turns
from clarad.responders import Responder
from clarad.store import (
    Causes,
    Epoch,
    Heartbeat,
    HookRuns,
    LeaseLost,
    Messages,
    Missed,
    NodeSessions,
    Retention,
    StoreError,
    TaskRuns,
    Tasks,
    Tokens,
    Writer,
)
from clarad.store.cluster.messages import ClusterMessages
from clarad.store.cluster.nodes import ClusterNodeSessions
from clarad.systemd.handover import NOTHING as NOTHING_HANDED
from clarad.systemd.handover import Handover
from clarad.systemd.notify import Notifier
from clarad.systemd.status import Counts, Status
from clarad.systemd.watchdog import Part, Watchdog
from clarad.transport.activation import ActivatedEndpoint
from clarad.transport.listeners import TcpEndpoint
from clarad.transport.outbox import outbox_budget
from clarad.transport.stream import receive_budget
from clarad.version import VERSION

STORE_PATIENCE: Final = 60.0
"""Seconds that a transaction may take before the watchdog counts the store as stuck: a disk may be
slow, or a database out of reach for a while."""


class Daemon:
    """The tree of scopes, from the supervisor down. The database must be migrated."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        responder: Responder,
        defined: Definitions = NOTHING,
        sandboxes: Sandboxes | None = None,
        overlay: Overlay | None = None,
        handed: Handover = NOTHING_HANDED,
    ) -> None:
        """`sandboxes` are those that the responder uses; `overlay` is where settings come from."""
        self._settings = settings
        self._defined = defined
        self._sandboxes = sandboxes
        self.bus = Bus()
        self.nodes = Nodes()
        self._epoch = Epoch() if engine.dialect.name == "postgresql" else None
        self.writer = Writer(engine, self._epoch)
        shared = self._epoch is not None
        self._messages = (ClusterMessages if shared else Messages)(self.writer)
        self._node_sessions = (ClusterNodeSessions if shared else NodeSessions)(self.writer)
        self.turns = Turns(
            bus=self.bus,
            nodes=self.nodes,
            store=self._messages,
            responder=responder,
            session_timeout=settings.session_timeout,
            message_timeout=settings.message_timeout,
            slots=Slots(settings.max_running),
            rates=Rates(settings.rate_node, settings.rate_user),
        )
        self._given_up = trio.Event()
        self._hooks = Hooks(defined.hooks, HookRuns(self.writer), self._given_up)
        states, task_runs = Tasks(self.writer), TaskRuns(self.writer)
        self._task_runner = TaskRunner(task_runs, states, self.bus.publish, self._given_up)
        self._scheduler = Scheduler(
            defined.tasks,
            runner=self._task_runner,
            runs=task_runs,
            states=states,
            now=wall_clock if self._epoch is None else self._epoch.now,
        )
        self._sweeper = Sweeper(Retention(self.writer), settings)
        self._watched_within = handed.watchdog
        self._at_end = ExitStack()
        self._notifier = self._at_end.enter_context(closing(Notifier(handed.notify_socket)))
        self._status = Status(self._notifier, self._count)
        self.writer.health.changed = self._status.changed
        self.operations = Operations(
            settings,
            self._hooks,
            self._scheduler,
            self._status,
            sandboxes,
            apply=self._apply,
            close_token=lambda token: self._servers.close_token(token),
            check_store=self.writer.check_health,
            describe_store=self._sweeper.describe,
            overlay=overlay,
        )
        outboxes = outbox_budget()
        self._servers = Servers(
            settings,
            self._listen_at(handed),
            tokens=Tokens(self.writer),
            connect=partial(
                Connection,
                nodes=self.nodes,
                redelivery=Redelivery(self._messages, Missed(self.writer), self._node_sessions),
                causes=Causes(self.writer),
                handler=self.turns,
                bus=self.bus,
                outboxes=outboxes,
                receiving=receive_budget(),
            ),
            operations=self.operations,
            outboxes=outboxes,
        )
        self._peers = self._make_peers()
        self._lease = self._make_lease(engine)
        self._serving = trio.CancelScope()
        self._is_announced = False
        self._drain = trio.CancelScope()
        self._living = trio.CancelScope()
        self._supervisor: Supervisor | None = None
        self.stopped = trio.Event()

    async def run(
        self, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start all parts in order, serve until `request_stop`, and stop them: see `_stop`.

        Calls `started` with the address once connections are accepted, unless a stop was requested
        before. Cancelling ends everything without draining; nothing that is stored is lost.

        Raises:
            LeaseLost: another daemon may have taken over; all work here has ended.
        """
        with (
            self._at_end,
            self.bus.attach(self._hooks),
            self.bus.attach(log.event_log()),
        ):
            async with open_supervisor() as self._supervisor:
                if self._notifier.is_enabled:
                    self._at_end.enter_context(self.bus.attach(self._status))
                    await self._supervisor.start("status", self._status.run)
                try:
                    with self._living:
                        with self._serving:
                            await self._serve(self._supervisor, task_status)
                        await self._stop(self._supervisor)
                finally:
                    self._status.stopping(stop_budget(self._settings))  # also of what has failed
                    self.turns.stop_accepting()
                    self._give_up()
        if self._epoch is not None and self._epoch.is_lost:
            raise LeaseLost("this daemon has lost its lease on the database")
        self.stopped.set()

    async def _serve(
        self, supervisor: Supervisor, task_status: trio.TaskStatus[tuple[str, int]]
    ) -> None:
        try:
            where = await self._start(supervisor)
        except StoreError:
            if not self.is_stopping:  # else it was cut off
                raise
            return
        task_status.started(where)
        self._status.ready()
        await trio.sleep_forever()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._serving.cancel_called

    @property
    def in_force(self) -> tuple[Settings, Definitions]:
        """The settings, hooks and tasks in force, as last reloaded."""
        return self._settings, Definitions(self._hooks.current, self._scheduler.tasks)

    def request_stop(self) -> None:
        """Stop: begin no message or task any more, not even one that waits. Does not block.

        Also works during the start. `stopped` is set when everything has ended.
        """
        self._status.stopping(stop_budget(self._settings))
        self._servers.stop_listening()
        self.turns.stop_accepting()
        self._scheduler.stop_firing()
        self._serving.cancel("a stop was requested")
        if not self._is_announced:
            self.writer.cut()  # the start may wait for a database that does not answer

    def _make_peers(self) -> Peers | None:
        messages, node_sessions = self._messages, self._node_sessions
        if not isinstance(messages, ClusterMessages):
            return None
        assert isinstance(node_sessions, ClusterNodeSessions)
        return Peers(
            scheduler=self._scheduler,
            nodes=self.nodes,
            turns=self.turns,
            messages=messages,
            node_sessions=node_sessions,
            close_revoked=self._servers.close_revoked,
        )

    def _make_lease(self, engine: Engine) -> Lease | None:
        if self._epoch is None or self._peers is None:
            return None
        from clarad.store.cluster.membership import Membership  # needs psycopg

        state_dir = self._settings.state_dir
        return Lease(
            Membership(
                engine,
                self._epoch,
                instance=instance.identify(state_dir),
                claimant=instance.claimant(state_dir),
                lease=self._settings.lease,
            ),
            inherit=(self._hooks.inherit, self._inherit_messages, self._scheduler.inherit),
            on_heartbeat=self._on_heartbeat,
            on_notice=self._peers.receive,
            tasks=lambda: self._scheduler.digest,
            on_loss=self._end_at_once,
        )

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Pass a renewal of the lease on. It also proves that the database answers."""
        self.writer.cut_if_stuck(self._settings.lease)
        self._scheduler.note_heartbeat(heartbeat)

    async def _inherit_messages(self, epochs: Collection[int]) -> None:
        if isinstance(self._node_sessions, ClusterNodeSessions):
            await self._node_sessions.inherit(epochs)
        self.turns.inherit(epochs)

    def _end_at_once(self) -> None:
        """End all work at once, with the lease: nothing can be written any more.

        No order is kept, as there is no store left to write to: children end side by side.
        """
        discovery.withdraw(self._settings.state_dir)
        self.turns.stop_accepting()
        self._give_up()
        self.writer.cut()
        self._servers.stop_listening()
        self._servers.close_all()
        assert self._supervisor is not None
        self._supervisor.cancel("scheduler", "task runs", "turns", "hooks")
        self._living.cancel("the lease is lost")

    def _apply(self, settings: Settings, tls: ssl.SSLContext | None) -> None:
        """Put reloaded settings in force; messages keep the timeout they began with.

        `Operations` has replaced the hooks and tasks already.
        """
        self._settings = settings
        self._servers.apply(settings, tls)
        self.turns.sessions.set_timeout(settings.session_timeout)
        self.turns.executor.timeout = settings.message_timeout
        self.turns.executor.slots.resize(settings.max_running)
        self.turns.admission.set_rates(settings.rate_node, settings.rate_user)
        self._sweeper.apply(settings)
        log.set_level(settings.log_level)

    def stop_at_once(self) -> None:
        """Cut the drain short."""
        self._drain.cancel("stopping at once")

    async def _start(self, supervisor: Supervisor) -> tuple[str, int]:
        if self._lease is not None:  # first: it leaves when all that the store has is written
            await supervisor.start("lease", self._lease.run)
        await supervisor.start("store", self.writer.run)
        await supervisor.start("hooks", self._hooks.run)
        if self._sandboxes is not None:
            await supervisor.start("sandboxes", self._sandboxes.run)
        self.nodes.restore(*await self._node_sessions.restore())
        await supervisor.start("turns", self.turns.run)
        if self._peers is not None:
            await supervisor.start("notices", self._peers.run)
        host, port = await self._servers.start(supervisor)
        await supervisor.start("task runs", self._task_runner.run)
        await supervisor.start("scheduler", self._scheduler.run)
        await supervisor.start("retention", self._sweeper.run)
        control = await self._servers.start_control(supervisor)
        if self._lease is not None:
            self._lease.set_ready(f"{socket.gethostname()}:{port}")
        if self._watched_within is not None:
            await supervisor.start("watchdog", self._watchdog(self._watched_within).run)
        where = discovery.Address(host, port, tls=self._settings.gateway_tls_cert is not None)
        discovery.announce(self._settings.state_dir, where, os.getpid(), control=control)
        self._is_announced = True
        hooks, tasks = len(self._defined.hooks), len(self._defined.tasks)
        about = {"version": VERSION, "hooks_loaded": hooks, "tasks_loaded": tasks}
        self.bus.publish(EventType.GATEWAY_STARTUP, data={"host": host, "port": port, **about})
        return host, port

    async def _stop(self, supervisor: Supervisor) -> None:
        """Drain, cancel the rest, close connections; the supervisor stops the other children.

        Each step is bounded by a budget of `clarad.app.budgets`. Parts that a stop during the start
        has left out are skipped.
        """
        discovery.withdraw(self._settings.state_dir)
        self._drain.deadline = trio.current_time() + self._settings.drain_timeout
        with self._drain:
            await self.turns.drained()
            await self._task_runner.queues.drained()
        self.turns.stop()
        with trio.move_on_after(CANCEL_BUDGET) as limit:
            await supervisor.stop("scheduler")
            await supervisor.stop("task runs")
            await self.turns.drained()
        if limit.cancelled_caught:
            self._give_up()
        await supervisor.stop("turns")
        self._servers.close_all()
        with trio.move_on_after(CLOSE_BUDGET):
            await self._servers.ended(supervisor)
        if self._is_announced:
            self.bus.publish(EventType.GATEWAY_SHUTDOWN, data={"reason": "signal"})
        with trio.move_on_after(HOOKS_BUDGET):
            await self._hooks.drained()

    def _listen_at(self, handed: Handover) -> TcpEndpoint | ActivatedEndpoint:
        host, port = self._settings.gateway_host, self._settings.gateway_port
        if handed == NOTHING_HANDED:
            return TcpEndpoint(host, port)
        is_guarded = self._settings.gateway_secret is not None
        endpoint = ActivatedEndpoint(
            host, port, handed=handed.sockets, notifier=self._notifier, is_guarded=is_guarded
        )
        self._at_end.callback(endpoint.release)
        return endpoint

    def _watchdog(self, timeout: float) -> Watchdog:
        parts = (
            Part("store", self.writer.progress, STORE_PATIENCE),
            # It waits for the store.
            Part("scheduler", self._scheduler.progress, STORE_PATIENCE),
            Part("gateway", self._servers.port.progress),
        )
        return Watchdog(self._notifier, timeout, parts)

    def _count(self) -> Counts:
        sessions, running, waiting = self.turns.count()
        return Counts(
            self.nodes.connected,
            sessions,
            running,
            waiting,
            self._task_runner.queues.running,
            self._scheduler.next_task(),
            0 if self._lease is None else self._lease.others,
            str(self.writer.health.failing or ""),
        )

    def _give_up(self) -> None:
        """Retry no commit any more; the next start recovers what is unfinished."""
        self.turns.give_up()
        self._given_up.set()
