"""A machine in a test's hands: its clock, its shell, its disk, and a scheduler that runs on it.

Nothing here is a thread or a process, so that `MockClock` can let a day pass in a moment. The
scheduler, its runs and their SQL are the real ones; commands are the few words that `Shell` knows.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast
from zoneinfo import ZoneInfo

import trio
from sqlalchemy import Connection, Executable, StaticPool, Table, create_engine, select
from sqlalchemy.dialects import sqlite

from clarad.automation.tasks.cron import Cron
from clarad.automation.tasks.task import Task
from clarad.automation.tasks.task_run import TaskRun
from clarad.events import EventType
from clarad.nurseries.scheduler import Scheduler
from clarad.nurseries.supervisor import open_supervisor
from clarad.nurseries.task_runs import TaskRunner
from clarad.process.shell import Output, Result
from clarad.store import StoreError, TaskRuns, Tasks, Writer
from clarad.store.job import Job, Then
from clarad.store.models import Base, TaskRunRow

T = TypeVar("T")

NOON: Final = datetime(2027, 3, 1, 12, tzinfo=UTC)
"""The time on a new machine's clock."""


def task(name: str = "t", *, cron: str | None = None, **fields: Any) -> Task:
    """Return a task that is due each ten seconds, or as it is told."""
    if cron is not None:
        fields |= {"type": "cron", "cron": Cron.parse(cron)}
    elif "type" not in fields:
        fields = {"interval": 10.0} | fields
    plain: dict[str, Any] = {"command": "true", "working_dir": Path("/")}
    plain["timezone"] = ZoneInfo("UTC")
    return Task(name=name, **plain | fields)


class Wall:
    """The wall clock: goes with Trio's, and can be set."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._test = trio.lowlevel.current_task()
        self.fails_once = False

    def look(self) -> datetime:
        """Look at it as the scheduler does; that may fail.

        The failure is for the scheduler. The test's own task looks, too, when it asks for something
        as an operator does; it may be earlier, if the scheduler waits for the disk.
        """
        if self.fails_once and trio.lowlevel.current_task() is not self._test:
            self.fails_once = False
            raise RuntimeError("as the test wants it")
        return self.now()

    def now(self) -> datetime:
        return NOON + timedelta(seconds=trio.current_time()) + self._ahead

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back; forward is also what a suspend looks like."""
        self._ahead += timedelta(seconds=seconds)


class Start(NamedTuple):
    """A command that was started, for which occurrence, and the time on the wall."""

    task: str
    nominal_at: datetime
    at: datetime


class Shell:
    """Knows `true`, `false`, `sleep SECONDS`, and `hold` until `release`; `echo` whatever else."""

    def __init__(self, wall: Wall) -> None:
        self._wall = wall
        self.started: list[Start] = []
        self.running: defaultdict[str, int] = defaultdict(int)
        self.overlapped: set[str] = set()
        self.release = trio.Event()

    async def run(
        self, command: str, *, env: Mapping[str, str], output: Output, **_: Any
    ) -> Result:
        """Stand in for `clarad.process.shell.run`."""
        name = env["CLARA_TASK"]
        nominal_at = datetime.fromisoformat(env["CLARA_NOMINAL_TIME"])
        self.started.append(Start(name, nominal_at, self._wall.now()))
        if self.running[name]:
            self.overlapped.add(name)
        self.running[name] += 1
        try:
            await self._obey(command, output)
        finally:
            self.running[name] -= 1
        return Result(1 if command == "false" else 0, b"", b"")

    async def _obey(self, command: str, output: Output) -> None:
        match command.split():
            case ["sleep", seconds]:
                await trio.sleep(float(seconds))
            case ["hold"]:
                await self.release.wait()
            case ["echo", *words]:
                output.stdout.add(" ".join(words).encode())
        await trio.lowlevel.checkpoint()

    def nominal_times(self, name: str) -> list[datetime]:
        """Return the occurrences for which a task's command was started, in that order."""
        return [start.nominal_at for start in self.started if start.task == name]


class Disk:
    """The store's writer without its thread; commits what it is handed, in order, or fails it.

    While `held` it commits nothing but what `commit` tells it to; it fails what it `refuses`.
    """

    epoch = None
    owner = None

    def __init__(self) -> None:
        self._engine = create_engine("sqlite://", poolclass=StaticPool)
        Base.metadata.create_all(self._engine)
        self._queue: deque[Job] = deque()
        self._grown = trio.Event()
        self.refuses: Callable[[dict[str, Any]], bool] = _nothing
        self.let_go()

    def execute(
        self, statement: Executable, parameters: dict[str, Any], then: Then | None = None
    ) -> Job:
        return self._submit(Job(statement, parameters, then=then))

    def insert(self, statement: Executable, parameters: dict[str, Any]) -> Job:
        return self._submit(Job(statement, parameters, asks_if_new=True))

    def insert_into(self, table: Table) -> sqlite.Insert:
        return sqlite.insert(table).execution_options(preserve_rowcount=True)

    async def call(self, function: Callable[[Connection], T]) -> T:
        job = self._submit(Job(function=function))
        await job.wait()
        return cast(T, job.result)

    def _submit(self, job: Job) -> Job:
        self._queue.append(job)
        self._grown.set()
        return job

    async def run(self) -> None:
        while True:
            await self._grown.wait()
            self._grown = trio.Event()
            await trio.lowlevel.checkpoint()  # a disk is never the quickest
            if not self.held:
                self.commit(len(self._queue))

    def commit(self, count: int) -> None:
        """Commit so many of the jobs that wait, each by itself."""
        for _ in range(min(count, len(self._queue))):
            job = self._queue.popleft()
            try:
                if self.refuses(job.parameters or {}):
                    raise StoreError("the disk is full")
                with self._engine.begin() as connection:
                    job.run(connection)
            except Exception as error:
                job.error = error
            job.finish()

    @property
    def is_well(self) -> bool:
        return not self.held and self.refuses is _nothing

    def fill_up(self) -> None:
        """Fail everything until `let_go`."""
        self.refuses = lambda _: True

    def crash(self) -> None:
        """Lose what waits to be committed, and what comes until `let_go`."""
        self.held = False
        self.fill_up()
        self.commit(len(self._queue))

    def release(self) -> None:
        """Hold nothing any more; what it refuses, it refuses."""
        self.held = False
        self._grown.set()

    def let_go(self) -> None:
        """Commit everything from here on."""
        self.refuses = _nothing
        self.release()

    def rows(self) -> list[Any]:
        """Return what is on the disk of all runs of tasks, by their nominal times."""
        statement = select(TaskRunRow.__table__).order_by(TaskRunRow.nominal_at)
        with self._engine.connect() as connection:
            return list(connection.execute(statement))


class Machine:
    """`boot` it with tasks, and let time pass; `kill` it at the end, whatever has come of the test.

    Nothing else ends what runs on it: the scheduler's writes are shielded, and wait for the disk.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.wall = Wall()
        self.shell = Shell(self.wall)
        self.disk = Disk()
        self.events: list[tuple[EventType, dict[str, Any]]] = []
        self._is_on = False
        self._nursery = nursery
        nursery.start_soon(self.disk.run)

    async def boot(self, *tasks: Task, takes: float = 0) -> None:
        """Start the scheduler, as a daemon does whose other parts take so many seconds first."""
        self.wall.fails_once = False  # the failure was the last life's
        writer = cast(Writer, self.disk)
        runs, states = TaskRuns(writer), Tasks(writer)
        self._given_up = trio.Event()
        self._runner = TaskRunner(runs, states, self._note, self._given_up)
        self.scheduler = Scheduler(
            tasks, runner=self._runner, runs=runs, states=states, now=self.wall.look
        )
        await trio.sleep(takes)
        await self._nursery.start(self._supervise)

    async def _supervise(self, task_status: trio.TaskStatus[None]) -> None:
        self._is_on, self._stop, self._stopped = True, trio.Event(), trio.Event()
        try:
            async with open_supervisor() as supervisor:
                await supervisor.start("task runs", self._runner.run)
                await supervisor.start("scheduler", self.scheduler.run)
                task_status.started()
                await self._stop.wait()
        finally:
            self._stopped.set()

    async def shut_down(self, drain: float = 0) -> None:
        """Stop the scheduler as a daemon does, with so many seconds for what runs.

        The disk is given up if it does not work, and is well again afterwards.
        """
        self.scheduler.stop_firing()
        with trio.move_on_after(drain):
            await self._runner.queues.drained()
        if not self.disk.is_well:
            self._given_up.set()
            self.disk.release()
        await self._end()
        self.disk.let_go()

    async def kill(self) -> None:
        """End everything as `kill -9` does: nothing more reaches the disk. Cannot be cancelled."""
        if self._is_on:
            self._given_up.set()
            self.disk.crash()
            with trio.CancelScope(shield=True):
                await self._end()
        self.disk.let_go()

    async def _end(self) -> None:
        self._stop.set()
        await self._stopped.wait()
        self._is_on = False

    def fail_runs(self) -> None:
        """Have the part that carries runs out fail; the supervisor starts it again."""

        async def fail() -> None:
            raise RuntimeError("as the test wants it")

        nursery = self._runner._nursery
        assert nursery is not None
        nursery.start_soon(fail)

    def run_now(self, name: str) -> TaskRun:
        return self.scheduler.run_now(name)

    def rows(self, name: str = "t") -> list[Any]:
        """Return the rows of a task's scheduled runs, by their nominal times."""
        return [row for row in self.disk.rows() if (row.task, row.origin) == (name, "schedule")]

    def accounts(self, name: str = "t") -> list[tuple[float, str | None]]:
        """Return the nominal time, in seconds after noon, and the outcome of each row of a task.

        What was skipped has the reason in place of its outcome.
        """
        return [
            (
                (row.nominal_at - NOON).total_seconds(),
                _why(row.reason) if row.outcome == "skipped" else row.outcome,
            )
            for row in self.rows(name)
        ]

    def _note(self, event_type: EventType, *, caused_by: Sequence[str], data: Any) -> None:
        self.events.append((event_type, data | {"caused_by": caused_by}))


def _why(reason: str) -> str:
    return reason.partition(":")[0] if reason.startswith("overlap:") else reason


def _nothing(_: dict[str, Any]) -> bool:
    return False
