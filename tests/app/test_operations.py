"""What an operator can have a running daemon do: a real one, its files, its commands, its store."""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from clarad.app.operations import Operations
from clarad.automation import definitions
from clarad.config import Settings
from clarad.events import EventType
from clarad.protocol.control import Refused, Report
from clarad.store import TaskState
from clarad.store.history import open_history
from tests.conftest import Running, Start
from tests.fifo import Fifo
from tests.store.conftest import Outside

PATIENCE: Final = 10
"""Seconds until something that has to happen counts as not happening."""

SELDOM: Final = 100_000
"""Seconds between occurrences that no test lives to see, but for the first."""

HOLD: Final = 'echo "$CLARA_RUN" > begun; read _ < go; echo done'
"""Says which run has begun, and goes on when it is told to."""


class Asked:
    """A request for a run, and what has come of it so far."""

    def __init__(self, ask: Callable[..., Awaitable[Report]]) -> None:
        self.run = ""
        self.report: Report | None = None
        self.problems: list[str] = []
        self.started = trio.Event()
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self._ask = ask

    async def wait(self) -> None:
        """Do what a connection does with a request."""
        try:
            with self.scope:
                self.report = await self._ask(started=self._note)
        except Refused as refused:
            self.problems = refused.problems
        finally:
            self.done.set()

    def _note(self, run: str) -> None:
        self.run = run
        self.started.set()


class House:
    """A directory with hooks.yaml and scheduler.yaml, and a daemon that has read them."""

    def __init__(self, directory: Path, start: Start, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.running: Running | None = None
        self._start = start
        self._nursery = nursery
        self.begun = Fifo(directory / "begun")
        self.go = Fifo(directory / "go")

    # --- the files -------------------------------------------------------------------------------

    def write(self, *, hooks: Any = None, tasks: Any = None) -> None:
        """Write entries, as fields by their names, into these files; JSON is YAML, too."""
        for name, key, found in (("hooks", "hooks", hooks), ("scheduler", "tasks", tasks)):
            if found is not None:
                entries = [{"name": name} | fields for name, fields in found.items()]
                (self.directory / f"{name}.yaml").write_text(json.dumps({key: entries}, indent=1))

    async def open(self, *, hooks: Any = None, tasks: Any = None) -> None:
        """Write the files and start a daemon with them."""
        self.write(hooks=hooks or {}, tasks=tasks or {})
        where: dict[str, Any] = {"hooks_dir": self.directory, "scheduler_dir": self.directory}
        defined = definitions.load(Settings(state_dir=self.directory, database_url="", **where))
        assert not defined.problems
        self.running = await self._start(defined, **where)

    # --- the daemon ------------------------------------------------------------------------------

    @property
    def daemon(self) -> Running:
        assert self.running is not None
        return self.running

    @property
    def operations(self) -> Operations:
        return self.daemon.daemon.operations

    @property
    def database(self) -> str:
        return self.daemon.settings.database_url

    async def reload(self, *, hooks: Any = None, tasks: Any = None) -> str:
        """Write the files, and have the daemon read them; return what it says."""
        self.write(hooks=hooks, tasks=tasks)
        with trio.fail_after(PATIENCE):
            return (await self.operations.reload()).text

    async def ask(self, ask: Callable[..., Awaitable[Report]]) -> Asked:
        """Ask for a run; return when it has started, or is refused."""
        asked = Asked(ask)
        self._nursery.start_soon(asked.wait)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for event in (asked.started, asked.done):
                    nursery.start_soon(_first, event, nursery.cancel_scope)
        return asked

    async def ask_for_task(self, name: str, caused_by: Any = ()) -> Asked:
        return await self.ask(partial(self.operations.run_task, name, caused_by))

    async def ask_for_replay(self, run: str, caused_by: Any = ()) -> Asked:
        return await self.ask(partial(self.operations.replay_run, run, caused_by))

    async def run_task(self, name: str) -> Report:
        """Run a task to its end."""
        return await end_of(await self.ask_for_task(name))

    def publish(self, **fields: Any) -> None:
        """Have something happen that hooks may want."""
        self.daemon.daemon.bus.publish(EventType.TOOL_ERROR, **fields)

    # --- what its commands do --------------------------------------------------------------------

    async def one_has_begun(self) -> str:
        """Wait for a command that holds; return its run."""
        return (await trio.to_thread.run_sync(self.begun.read)).strip()

    def let_one_go_on(self) -> None:
        self.go.write("\n")

    # --- what it has written down ----------------------------------------------------------------

    def states(self) -> dict[str, TaskState]:
        with open_history(self.database) as history:
            return history.task_states()

    def found(self, run: str) -> dict[str, Any]:
        with open_history(self.database) as history:
            found = history.find(run)
        assert found is not None
        return found

    def hook_runs(self, hook: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of a hook, or of all hooks, the newest first."""
        with open_history(self.database) as history:
            return history.hook_runs(hook=hook, failed=False, limit=1000)

    def task_runs(self, task: str) -> list[dict[str, Any]]:
        """Return the runs of a task, the newest first."""
        with open_history(self.database) as history:
            return history.task_runs(task=task, failed=False, limit=1000)

    async def ended(self, run: str) -> dict[str, Any]:
        """Wait until a run has ended; nothing says so but its row."""
        await seen(lambda: self.found(run)["ended_at"])
        return self.found(run)

    async def ended_of_hook(self, hook: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many runs of a hook have ended; return them, the newest first."""

        def look() -> list[dict[str, Any]] | None:
            found = [run for run in self.hook_runs(hook) if run["ended_at"]]
            return found if len(found) >= count else None

        return [self.found(run["run"]) for run in await seen(look)]


async def _first(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel("one is enough")


async def seen(look: Callable[[], Any]) -> Any:
    """Look until something is there."""
    with trio.fail_after(PATIENCE):
        while (found := look()) is None:
            await trio.sleep(0.005)
    return found


async def end_of(asked: Asked) -> Report:
    """Wait for the end of what was asked for."""
    with trio.fail_after(PATIENCE):
        await asked.done.wait()
    assert asked.report is not None, asked.problems
    return asked.report


async def refusal(operation: Awaitable[object]) -> str:
    """Return the one problem with what is asked for."""
    with pytest.raises(Refused) as refused:
        await operation
    (problem,) = refused.value.problems
    return problem


@pytest.fixture
def fifos() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def house(tmp_path: Path, start: Start, nursery: trio.Nursery, fifos: ExitStack) -> House:
    """What `open` starts ends with the test, and so do the pipes of its commands."""
    directory = tmp_path / "config"
    directory.mkdir()
    made = House(directory, start, nursery)
    fifos.enter_context(made.begun)
    fifos.enter_context(made.go)
    return made


def echo(text: str, **fields: Any) -> dict[str, Any]:
    return {"interval": SELDOM, "delay": SELDOM, "command": f"echo {text}"} | fields


def hold(**fields: Any) -> dict[str, Any]:
    return {"interval": SELDOM, "delay": SELDOM, "command": HOLD} | fields


def on_error(command: str, **fields: Any) -> dict[str, Any]:
    return {"event": "tool:error", "command": command} | fields


# --- to run a task now ---------------------------------------------------------------------------


async def test_a_task_is_run_and_its_end_reported(house: House) -> None:
    await house.open(tasks={"backup": hold()})
    asked = await house.ask_for_task("backup")
    assert await house.one_has_begun() == asked.run
    assert not asked.done.is_set()
    house.let_one_go_on()
    assert await end_of(asked) == Report("task backup ran", asked.run, "ran")
    row = house.found(asked.run)
    assert (row["task"], row["origin"], row["stdout"]) == ("backup", "operator", "done\n")


async def test_a_task_that_fails_is_reported_with_the_reason(house: House) -> None:
    await house.open(
        tasks={"broken": echo("x; exit 3"), "slow": echo("x; sleep 100", timeout=0.05)}
    )
    report = await house.run_task("broken")
    assert (report.text, report.outcome) == ("task broken failed: exit status 3", "failed")
    report = await house.run_task("slow")
    assert report.text == "task slow timed_out: it had not ended within 0.05 s"
    assert report.outcome == "timed_out"


async def test_a_task_knows_what_led_to_it(house: House) -> None:
    await house.open(tasks={"why": echo("$CLARA_CAUSED_BY")})
    asked = await house.ask_for_task("why", ["hook-1", "task-2"])
    await end_of(asked)
    assert house.found(asked.run)["stdout"] == f"hook-1 task-2 {asked.run}\n"
    assert house.found(asked.run)["caused_by"] == "hook-1 task-2"


async def test_a_task_that_is_disabled_or_paused_can_be_run(house: House) -> None:
    await house.open(tasks={"disabled": echo("x", enabled=False), "paused": echo("x")})
    await house.operations.pause_task("paused")
    for name in ("disabled", "paused"):
        assert (await house.run_task(name)).outcome == "ran"


async def test_a_task_that_is_not_there_is_not_run_and_a_near_one_is_named(house: House) -> None:
    await house.open(tasks={"backup": echo("x")})
    asked = await house.ask_for_task("bakcup")
    assert asked.problems == ["there is no task 'bakcup'; did you mean 'backup'?"]
    assert asked.run == ""


async def test_a_task_that_runs_is_not_run_twice_at_once(house: House) -> None:
    await house.open(tasks={"backup": hold()})
    first = await house.ask_for_task("backup")
    second = await house.ask_for_task("backup")
    (problem,) = second.problems
    assert first.run in problem
    await house.one_has_begun()
    house.let_one_go_on()
    assert (await end_of(first)).outcome == "ran"
    assert len(house.task_runs("backup")) == 1


async def test_a_task_that_queues_is_run_after_the_run_before(house: House) -> None:
    await house.open(tasks={"backup": hold(overlap="queue")})
    asked = [await house.ask_for_task("backup") for _ in range(3)]
    for each in asked:
        assert await house.one_has_begun() == each.run
        house.let_one_go_on()
        assert (await end_of(each)).outcome == "ran"


async def test_a_task_that_cancels_the_run_before_does_so_when_it_is_run_now(
    house: House,
) -> None:
    await house.open(tasks={"backup": hold(overlap="cancel")})
    first = await house.ask_for_task("backup")
    await house.one_has_begun()
    second = await house.ask_for_task("backup")
    assert (await end_of(first)).outcome == "cancelled"
    assert await house.one_has_begun() == second.run
    house.let_one_go_on()
    assert (await end_of(second)).outcome == "ran"


async def test_who_waits_no_longer_ends_no_run(house: House) -> None:
    await house.open(tasks={"backup": hold()})
    asked = await house.ask_for_task("backup")
    await house.one_has_begun()
    asked.scope.cancel("the test wants it")
    await asked.done.wait()
    house.let_one_go_on()
    assert (await house.ended(asked.run))["outcome"] == "ran"


async def test_what_waits_when_the_daemon_stops_is_refused_and_left_to_its_next_start(
    house: House,
) -> None:
    await house.open(tasks={"backup": hold(overlap="queue")})
    first = await house.ask_for_task("backup")
    second = await house.ask_for_task("backup")
    await house.one_has_begun()
    await seen(lambda: len(house.task_runs("backup")) == 2 or None)
    house.daemon.daemon.request_stop()
    house.let_one_go_on()
    assert (await end_of(first)).outcome == "ran"
    with trio.fail_after(PATIENCE):
        await house.daemon.daemon.stopped.wait()
    assert second.problems == [
        "task backup was not run: the daemon stops, or its store fails; see its log"
    ]
    assert house.found(second.run)["state"] == "waiting"


# --- to pause and resume -------------------------------------------------------------------------


BEAT: Final[dict[str, Any]] = {"interval": 0.03, "command": "true"}


async def comes_to(house: House, task: str, state: str, reason: str | None = None) -> None:
    """Wait until another occurrence of a task has this end."""
    before = {run["run"] for run in house.task_runs(task)}

    def look() -> bool | None:
        new = [run for run in house.task_runs(task) if run["run"] not in before]
        return (state, reason) in [(run["state"], run["reason"]) for run in new] or None

    await seen(look)


async def test_what_comes_due_of_a_paused_task_is_skipped_until_it_goes_on(house: House) -> None:
    await house.open(tasks={"beat": BEAT})
    await comes_to(house, "beat", "ran")
    report = await house.operations.pause_task("beat")
    assert report == Report("task beat is paused: what comes due is skipped")
    await comes_to(house, "beat", "skipped", "paused")
    report = await house.operations.resume_task("beat")
    assert report == Report("task beat goes on")
    await comes_to(house, "beat", "ran")
    runs = sorted(house.task_runs("beat"), key=lambda run: run["nominal_at"])
    turns = [is_paused for is_paused, _ in groupby(run["reason"] == "paused" for run in runs)]
    assert turns == [False, True, False]


async def test_what_runs_is_not_ended_by_a_pause(house: House) -> None:
    await house.open(tasks={"backup": hold()})
    asked = await house.ask_for_task("backup")
    await house.one_has_begun()
    await house.operations.pause_task("backup")
    house.let_one_go_on()
    assert (await end_of(asked)).outcome == "ran"


async def test_a_task_can_be_paused_and_resumed_twice(house: House) -> None:
    await house.open(tasks={"backup": echo("x")})
    for _ in range(2):
        await house.operations.pause_task("backup")
        assert house.states()["backup"].paused_at is not None
    for _ in range(2):
        await house.operations.resume_task("backup")
        assert house.states()["backup"].paused_at is None


async def test_a_paused_task_stays_so_when_the_daemon_is_started_again(house: House) -> None:
    await house.open(tasks={"beat": BEAT})
    await house.operations.pause_task("beat")
    house.daemon.daemon.request_stop()
    with trio.fail_after(PATIENCE):
        await house.daemon.daemon.stopped.wait()
    await house.open(tasks={"beat": BEAT})
    await comes_to(house, "beat", "skipped", "paused")
    await house.operations.resume_task("beat")
    await comes_to(house, "beat", "ran")


async def test_a_task_that_is_not_there_is_neither_paused_nor_resumed(house: House) -> None:
    await house.open(tasks={"backup": echo("x")})
    for operation in (house.operations.pause_task, house.operations.resume_task):
        assert await refusal(operation("back-up")) == (
            "there is no task 'back-up'; did you mean 'backup'?"
        )


async def test_if_a_pause_cannot_be_stored_it_is_refused_and_the_task_goes_on(
    house: House,
) -> None:
    await house.open(tasks={"beat": BEAT})
    outside = Outside(house.database)
    outside.do("ALTER TABLE clarad_tasks RENAME TO hidden")
    problem = await refusal(house.operations.pause_task("beat"))
    outside.do("ALTER TABLE hidden RENAME TO clarad_tasks")
    assert problem.startswith("the store failed, nothing has changed: ")
    count = len(house.task_runs("beat"))
    await seen(lambda: len(house.task_runs("beat")) > count + 2 or None)
    assert "paused" not in {run["reason"] for run in house.task_runs("beat")}


# --- to replay -----------------------------------------------------------------------------------


async def failed_run(house: House, hook: str = "greet") -> str:
    """Have a run of a hook that failed; return it."""
    house.publish(user_id="u", data={"tool": "hammer"})
    (run,) = await house.ended_of_hook(hook)
    assert run["outcome"] == "failed"
    return str(run["run"])


FAIL_ONCE: Final = 'cat; test -e mended || { touch mended; exit 3; }; echo " $CLARA_CAUSED_BY"'


async def test_a_run_is_replayed_with_the_event_that_it_had(house: House) -> None:
    await house.open(hooks={"greet": on_error(FAIL_ONCE)})
    first = await failed_run(house)
    asked = await house.ask_for_replay(first)
    assert await end_of(asked) == Report("hook greet ran", asked.run, "ran")
    before, after = house.found(first), house.found(asked.run)
    assert asked.run != first
    assert after["replay_of"] == first
    assert (after["event"], after["event_id"]) == (before["event"], before["event_id"])
    assert json.loads(after["event"])["data"] == {"tool": "hammer"}
    assert after["stdout"] == f"{before['stdout']} {asked.run}\n"
    assert before["state"] == "failed"


async def test_a_run_is_replayed_as_its_hook_now_is(house: House) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    first = await failed_run(house)
    await house.reload(hooks={"greet": on_error("echo mended")})
    asked = await house.ask_for_replay(first)
    assert (await end_of(asked)).outcome == "ran"
    assert house.found(asked.run)["stdout"] == "mended\n"


async def test_a_replay_that_fails_is_reported_and_can_be_replayed(house: House) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    run = await failed_run(house)
    for _ in range(2):
        asked = await house.ask_for_replay(run)
        report = await end_of(asked)
        assert report == Report("hook greet failed: exit status 3", asked.run, "failed")
        run = asked.run


async def test_who_waits_for_a_replay_no_longer_does_not_end_it(house: House) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    first = await failed_run(house)
    await house.reload(hooks={"greet": on_error(HOLD)})
    asked = await house.ask_for_replay(first)
    await house.one_has_begun()
    asked.scope.cancel("the test wants it")
    await asked.done.wait()
    house.let_one_go_on()
    assert (await house.ended(asked.run))["outcome"] == "ran"


async def test_a_replay_is_no_way_out_of_a_loop(house: House) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    first = await failed_run(house)
    asked = await house.ask_for_replay(first, [f"hook-{n}" for n in range(8)])
    report = await end_of(asked)
    assert report.outcome == "skipped"
    assert report.text.startswith("hook greet skipped: loop")


async def test_a_run_that_is_not_there_is_not_replayed(house: House) -> None:
    await house.open(tasks={"backup": echo("x")})
    of_a_task = (await house.run_task("backup")).run
    for run in ("hook-1", of_a_task, "'; --"):
        asked = await house.ask_for_replay(str(run))
        assert asked.problems == [f"there is no run {run!r}; `clarad hooks runs` lists them"]


@pytest.mark.parametrize("hooks", [{}, {"greet": on_error("true", enabled=False)}])
async def test_a_run_whose_hook_is_gone_is_not_replayed(house: House, hooks: Any) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    first = await failed_run(house)
    await house.reload(hooks=hooks)
    asked = await house.ask_for_replay(first)
    assert asked.problems == ["the hook 'greet' of this run was removed or disabled"]
    assert len(house.hook_runs("greet")) == 1


async def test_if_a_run_cannot_be_read_its_replay_is_refused(house: House) -> None:
    await house.open(hooks={"greet": on_error("exit 3")})
    first = await failed_run(house)
    outside = Outside(house.database)
    outside.do("ALTER TABLE clarad_hook_runs RENAME TO hidden")
    asked = await house.ask_for_replay(first)
    outside.do("ALTER TABLE hidden RENAME TO clarad_hook_runs")
    (problem,) = asked.problems
    assert problem.startswith("the store failed: ")
    assert "\n" not in problem


# --- to reload: tasks ----------------------------------------------------------------------------


async def test_a_new_task_and_a_new_hook_are_there_after_a_reload(house: House) -> None:
    await house.open()
    said = await house.reload(
        hooks={"greet": on_error("true")}, tasks={"a": echo("x"), "b": echo("y")}
    )
    assert said == "reloaded: 1 hook, 2 tasks"
    assert (await house.run_task("a")).outcome == "ran"
    house.publish()
    await house.ended_of_hook("greet")
    assert house.states().keys() == {"a", "b"}


async def test_a_new_task_is_run_by_the_clock(house: House) -> None:
    await house.open(tasks={"seldom": echo("x")})
    await house.reload(tasks={"seldom": echo("x"), "beat": BEAT})
    await comes_to(house, "beat", "ran")


async def test_a_reload_of_what_has_not_changed_changes_nothing(house: House) -> None:
    tasks = {
        "backup": echo("x"),
        "beat": BEAT,
        "later": {"type": "one_shot", "delay": SELDOM, "command": "true"},
    }
    await house.open(hooks={"greet": on_error("true")}, tasks=tasks)
    await comes_to(house, "beat", "ran")
    await house.operations.pause_task("backup")
    before = house.states()
    assert await house.reload() == "reloaded: 1 hook, 3 tasks"
    after = house.states()
    count = len(house.task_runs("beat"))
    assert {name: state for name, state in after.items() if name != "beat"} == {
        name: state for name, state in before.items() if name != "beat"
    }
    assert after["beat"].anchor_at == before["beat"].anchor_at
    await seen(lambda: len(house.task_runs("beat")) > count + 2 or None)
    for run in house.task_runs("beat"):
        phase = (run["nominal_at"] - before["beat"].anchor_at).total_seconds() / 0.03
        assert abs(phase - round(phase)) < 1e-6


async def test_what_runs_runs_on_over_reloads_whatever_becomes_of_it(house: House) -> None:
    tasks = {"same": hold(), "changed": hold(), "rescheduled": hold(), "removed": hold()}
    await house.open(tasks=tasks)
    asked = [await house.ask_for_task(name) for name in tasks]
    begun = ""
    while begun.count("task-") < 4:
        begun += await house.one_has_begun()
    await house.reload(
        tasks={"same": hold(), "changed": echo("new"), "rescheduled": hold(interval=SELDOM / 2)}
    )
    for _ in asked:
        house.let_one_go_on()
    for each in asked:
        assert (await end_of(each)).outcome == "ran"
        assert house.found(each.run)["stdout"] == "done\n"
    again = await house.ask_for_task("changed")
    await end_of(again)
    assert house.found(again.run)["stdout"] == "new\n"


async def test_a_task_that_was_removed_is_forgotten(house: House) -> None:
    await house.open(tasks={"a": echo("x"), "b": BEAT})
    await comes_to(house, "b", "ran")
    await house.reload(tasks={"a": echo("x")})
    assert house.states().keys() == {"a"}
    assert (await house.ask_for_task("b")).problems[0].startswith("there is no task 'b'")
    assert await refusal(house.operations.pause_task("b"))
    assert house.task_runs("b") != []


async def test_what_waits_of_a_task_that_was_removed_is_cancelled_and_says_why(
    house: House,
) -> None:
    await house.open(tasks={"backup": hold(overlap="queue")})
    first = await house.ask_for_task("backup")
    second = await house.ask_for_task("backup")
    await house.one_has_begun()
    await house.reload(tasks={})
    report = await end_of(second)
    assert report.outcome == "cancelled"
    assert "the task was removed" in report.text
    house.let_one_go_on()
    assert (await end_of(first)).outcome == "ran"


async def test_a_task_with_another_schedule_starts_anew(house: House) -> None:
    await house.open(tasks={"beat": echo("old")})
    before = house.states()["beat"]
    await house.reload(tasks={"beat": {"interval": 0.03, "command": "echo new"}})
    await comes_to(house, "beat", "ran")
    after = house.states()["beat"]
    assert after.schedule != before.schedule
    ran = [run["run"] for run in house.task_runs("beat") if run["outcome"] == "ran"]
    assert {house.found(run)["stdout"] for run in ran} == {"new\n"}


async def test_a_task_that_is_disabled_now_is_skipped_and_enabled_again_runs(
    house: House,
) -> None:
    await house.open(tasks={"beat": BEAT})
    await comes_to(house, "beat", "ran")
    await house.reload(tasks={"beat": BEAT | {"enabled": False}})
    await comes_to(house, "beat", "skipped", "disabled")
    await house.reload(tasks={"beat": BEAT})
    await comes_to(house, "beat", "ran")


async def test_a_pause_outlasts_reloads_and_other_schedules(house: House) -> None:
    await house.open(tasks={"beat": echo("x"), "same": echo("x")})
    for name in ("beat", "same"):
        await house.operations.pause_task(name)
    await house.reload(tasks={"beat": BEAT, "same": echo("changed")})
    assert all(state.paused_at is not None for state in house.states().values())
    await comes_to(house, "beat", "skipped", "paused")
    await house.operations.resume_task("beat")
    await comes_to(house, "beat", "ran")


async def test_a_pause_during_a_reload_is_not_lost(house: House) -> None:
    """However they fall together: what was reported last is so."""
    await house.open(tasks={"beat": echo("x")})
    for n in range(10):
        house.write(tasks={"beat": echo("x", interval=SELDOM + n)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.operations.reload)
            await trio.sleep(n / 1000)
            await house.operations.pause_task("beat")
        assert house.states()["beat"].paused_at is not None
        await house.operations.resume_task("beat")


# --- to reload: hooks ----------------------------------------------------------------------------


async def test_a_hook_that_was_changed_runs_as_it_now_is(house: House) -> None:
    await house.open(hooks={"greet": on_error("echo old")})
    house.publish()
    await house.ended_of_hook("greet")
    await house.reload(hooks={"greet": on_error("echo new")})
    house.publish()
    newest, oldest = await house.ended_of_hook("greet", 2)
    assert (newest["stdout"], oldest["stdout"]) == ("new\n", "old\n")


async def test_a_hook_that_was_removed_or_disabled_does_not_run(house: House) -> None:
    first = on_error("true", priority=9)
    await house.open(hooks={"gone": first, "off": first, "kept": on_error("true")})
    await house.reload(hooks={"off": first | {"enabled": False}, "kept": on_error("true")})
    house.publish()
    await house.ended_of_hook("kept")
    assert house.hook_runs("gone") == house.hook_runs("off") == []


@pytest.mark.parametrize("hooks", [{"greet": on_error(HOLD)}, {"greet": on_error("new")}, {}])
async def test_a_hook_that_runs_runs_on_over_a_reload(house: House, hooks: Any) -> None:
    await house.open(hooks={"greet": on_error(HOLD)})
    house.publish()
    run = await house.one_has_begun()
    await house.reload(hooks=hooks)
    house.let_one_go_on()
    ended = await house.ended(run)
    assert (ended["outcome"], ended["stdout"]) == ("ran", "done\n")


async def test_what_waits_for_a_hook_is_run_as_the_hook_now_is(house: House) -> None:
    await house.open(hooks={"greet": on_error(HOLD, overlap="queue")})
    for _ in range(2):
        house.publish()
    await house.one_has_begun()
    await house.reload(hooks={"greet": on_error("echo new", overlap="queue")})
    house.let_one_go_on()
    second, first = await house.ended_of_hook("greet", 2)
    assert (first["stdout"], second["stdout"]) == ("done\n", "new\n")


async def test_what_waits_for_a_hook_that_does_not_queue_any_more_begins_at_once(
    house: House,
) -> None:
    await house.open(hooks={"greet": on_error(HOLD, overlap="queue")})
    for _ in range(2):
        house.publish()
    first = await house.one_has_begun()
    await house.reload(hooks={"greet": on_error(HOLD)})
    second = await house.one_has_begun()
    assert second != first
    for _ in range(2):
        house.let_one_go_on()
    await house.ended_of_hook("greet", 2)


@pytest.mark.parametrize("hooks", [{}, {"greet": on_error("true", enabled=False)}])
async def test_what_waits_for_a_hook_that_is_gone_is_skipped_and_says_why(
    house: House, hooks: Any
) -> None:
    await house.open(hooks={"greet": on_error(HOLD, overlap="queue")})
    for _ in range(2):
        house.publish()
    await house.one_has_begun()
    await house.reload(hooks=hooks)
    house.let_one_go_on()
    second, first = await house.ended_of_hook("greet", 2)
    assert first["outcome"] == "ran"
    assert (second["outcome"], second["reason"]) == ("skipped", "the hook was removed or disabled")


# --- a reload that is refused --------------------------------------------------------------------

GOOD: Final[dict[str, Any]] = {
    "hooks": {"greet": on_error("echo old")},
    "tasks": {"backup": echo("old")},
}


async def assert_is_as_before(house: House) -> None:
    """The daemon has what is in `GOOD`."""
    house.publish()
    assert (await house.ended_of_hook("greet"))[0]["stdout"] == "old\n"
    asked = await house.ask_for_task("backup")
    await end_of(asked)
    assert house.found(asked.run)["stdout"] == "old\n"
    assert house.states().keys() == {"backup"}


async def test_hooks_that_are_broken_change_nothing_and_are_reported_with_their_line(
    house: House,
) -> None:
    await house.open(**GOOD)
    house.write(
        hooks={"greet": on_error("echo new"), "bad": {"event": "tool:eror", "command": "true"}},
        tasks={"backup": echo("new"), "more": echo("x")},
    )
    problem = await refusal(house.operations.reload())
    assert problem.startswith(f"{house.directory}/hooks.yaml:10: ")
    assert "tool:error" in problem
    await assert_is_as_before(house)


async def test_tasks_that_are_broken_change_nothing_and_are_reported_with_their_line(
    house: House,
) -> None:
    await house.open(**GOOD)
    house.write(
        hooks={"greet": on_error("echo new")},
        tasks={"backup": echo("new"), "bad": {"interval": 0, "command": "true"}},
    )
    problem = await refusal(house.operations.reload())
    assert problem.startswith(f"{house.directory}/scheduler.yaml:11: ")
    await assert_is_as_before(house)


async def test_all_that_is_wrong_is_reported_at_once(house: House) -> None:
    await house.open(**GOOD)
    house.write(
        hooks={"a": {"event": "no:such", "command": "true"}, "b": on_error("true", timeout=-1)},
        tasks={"c": {"type": "cron", "cron": "0 0 31 2 *", "command": "true"}},
    )
    with pytest.raises(Refused) as refused:
        await house.operations.reload()
    assert len(refused.value.problems) == 3
    await assert_is_as_before(house)


async def test_a_file_that_is_no_yaml_changes_nothing(house: House) -> None:
    await house.open(**GOOD)
    (house.directory / "scheduler.yaml").write_text("tasks: [")
    assert "scheduler.yaml" in await refusal(house.operations.reload())
    await assert_is_as_before(house)


async def test_a_file_that_was_mended_is_taken(house: House) -> None:
    await house.open(**GOOD)
    (house.directory / "scheduler.yaml").write_text("tasks: [")
    await refusal(house.operations.reload())
    assert await house.reload(tasks={"more": echo("x")}) == "reloaded: 1 hook, 1 task"
    assert (await house.run_task("more")).outcome == "ran"


async def test_if_the_tasks_cannot_be_stored_nothing_changes(house: House) -> None:
    await house.open(**GOOD)
    outside = Outside(house.database)
    house.write(hooks={"greet": on_error("echo new")}, tasks={"more": echo("x")})
    outside.do("ALTER TABLE clarad_tasks RENAME TO hidden")
    problem = await refusal(house.operations.reload())
    outside.do("ALTER TABLE hidden RENAME TO clarad_tasks")
    assert problem.startswith("the store failed, nothing has changed: ")
    await assert_is_as_before(house)


# --- reloads at the same time, and half of one ---------------------------------------------------


async def test_many_reloads_at_once_are_all_done_and_the_files_count(house: House) -> None:
    await house.open(**GOOD)
    reports: list[Report] = []

    async def reload() -> None:
        reports.append(await house.operations.reload())

    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(reload)
            await trio.sleep(0.001)
            house.write(hooks={f"hook-{n}": on_error("true")}, tasks={f"task-{n}": echo("x")})
        nursery.start_soon(reload)
    assert len(reports) == 11
    assert house.states().keys() == {"task-9"}
    assert (await house.run_task("task-9")).outcome == "ran"
    house.publish()
    await house.ended_of_hook("hook-9")
    assert house.hook_runs("greet") == []


async def test_a_reload_that_is_slow_to_read_does_not_overtake_the_next_one(house: House) -> None:
    await house.open(**GOOD)
    house.write(tasks={f"older {n}": echo("x") for n in range(1000)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.operations.reload)
        await trio.sleep(0.02)  # so that it reads what is older, if this machine is quick enough
        house.write(tasks={"newer": echo("x")})
        nursery.start_soon(house.operations.reload)
    assert house.states().keys() == {"newer"}


async def test_a_reload_that_nobody_waits_for_any_more_is_done_whole_or_not_at_all(
    house: House,
) -> None:
    await house.open(hooks={"0": on_error("true")}, tasks={"0": echo("x")})
    for n in range(1, 12):
        house.write(hooks={f"{n}": on_error("true")}, tasks={f"{n}": echo("x")})
        with trio.move_on_after(n / 1000):
            await house.operations.reload()
        (name,) = house.states()
        assert (await house.run_task(name)).outcome == "ran"
        house.publish()
        await house.ended_of_hook(name)
        assert house.hook_runs()[0]["hook"] == name
