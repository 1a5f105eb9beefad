"""`clarad tasks`: list tasks and their runs, run or pause one, preview the schedule."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from typing import Any, Final

from clarad import config
from clarad.adapters.operator import NoDaemon
from clarad.automation.overview import task_row
from clarad.automation.tasks import schedule, timezone
from clarad.automation.tasks.preview import preview
from clarad.automation.tasks.task import Task, load_tasks
from clarad.cli import control, listing, parts, print_error, runs
from clarad.cli.parts import CommandError
from clarad.protocol.control import PauseTask, ResumeTask, RunTask
from clarad.store import Outcome, StoreError, TaskState
from clarad.store.history import open_history, open_writable
from clarad.store.tasks import write_pause

_LIST: Final = ("name", "schedule", "enabled", "paused", "next_at", "last", "last_at")
_RUNS: Final = ("run", "task", "nominal_at", "state", "attempts", "duration", "reason")
_PERIOD: Final = timedelta(days=1)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = "Commands that run by the clock; scheduler.yaml says which."
    subparsers = parser.add_subparsers(dest="part", metavar="PART", required=True)
    tell = "the tasks, when each is due next, and how it ran last"
    parts.add_json_option(subparsers.add_parser("list", help=tell))
    runs.add_runs_options(
        subparsers.add_parser("runs", help="what has run, the newest first"), "task"
    )
    runs.add_show(subparsers)
    for name, text in (
        ("run", "run a task now, and wait for its end (needs the running daemon)"),
        ("pause", "skip what comes due of a task, until it is resumed"),
        ("resume", "let a paused task go on"),
    ):
        subparsers.add_parser(name, help=text).add_argument("name", type=parts.name, metavar="NAME")
    ahead = subparsers.add_parser(
        "preview", help="every fire in a period, and what is odd about it"
    )
    ahead.add_argument("--from", dest="start", type=_time, metavar="TIME", help="default: now")
    ahead.add_argument("--to", dest="end", type=_time, metavar="TIME", help="default: a day later")
    ahead.add_argument("--task", type=parts.name, metavar="NAME", help="only this task")
    parts.add_json_option(ahead)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails, or what it ran did."""
    functions = {
        "list": _list,
        "runs": _runs,
        "show": runs.show,
        "run": _run,
        "pause": _pause,
        "resume": _pause,
        "preview": _preview,
    }
    return parts.run_part(arguments, functions[arguments.part])


def _list(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_history(settings.database_url) as history:
        states = history.task_states()
        rows = runs.in_force(settings, "tasks")
        if rows is None:
            rows = [_row(task, states.get(task.name)) for task in _load(settings)]
        for row in rows:
            state = states.get(row["name"])
            if state is not None and state.paused_at is not None:  # another daemon may have it
                row |= {"paused": True, "next_at": None}
            row |= runs.last(history.last_task_run(row["name"]))
    listing.show(rows, _LIST, as_json=arguments.json)
    return 0


def _row(task: Task, state: TaskState | None) -> dict[str, Any]:
    known = state is not None and state.schedule == schedule.identity(task)
    anchor = state.anchor_at if state is not None and known else None
    return task_row(task, now=datetime.now(UTC), anchor=anchor, is_paused=False)


def _runs(arguments: argparse.Namespace, settings: config.Settings) -> int:
    runs.require_state(settings)
    with open_history(settings.database_url) as history:
        rows = history.task_runs(
            task=arguments.task, failed=arguments.failed, limit=arguments.limit
        )
    listing.show(rows, _RUNS, as_json=arguments.json)
    return 0


def _run(arguments: argparse.Namespace, settings: config.Settings) -> int:
    request = RunTask("run", arguments.name, control.caused_by())
    done = control.ask(settings, request, lambda run: print(f"run {run} has begun", flush=True))
    print(done.text)
    return 0 if done.outcome == Outcome.RAN else 1


def _pause(arguments: argparse.Namespace, settings: config.Settings) -> int:
    kind = PauseTask if arguments.part == "pause" else ResumeTask
    try:
        done = control.ask(settings, kind(arguments.part, arguments.name))
    except NoDaemon:
        return _pause_later(arguments, settings)
    print(done.text)
    return 0


def _pause_later(arguments: argparse.Namespace, settings: config.Settings) -> int:
    """Store the pause or its end, for the daemon's next start."""
    _find(_load(settings), arguments.name)
    is_paused = arguments.part == "pause"
    at = datetime.now(UTC) if is_paused else None
    with open_history(settings.database_url) as history:  # it makes no database
        is_known = arguments.name in history.task_states()
    if is_known:
        with open_writable(settings.database_url) as connection:
            is_known = write_pause(connection, arguments.name, at)
    if not is_known:
        raise CommandError(
            f"the daemon has never known the task {arguments.name!r}; start it first"
        )
    print(
        f"no daemon runs; at its next start {arguments.name} {'is paused' * is_paused or 'goes on'}"
    )
    return 0


def _preview(arguments: argparse.Namespace, settings: config.Settings) -> int:
    start = arguments.start or datetime.now(UTC)
    end = arguments.end or start + _PERIOD
    if end <= start:
        raise CommandError("--to is not after --from; write a later time")
    tasks = _load(settings)
    if arguments.task is not None:
        tasks = [_find(tasks, arguments.task)]
    anchors = _anchors(tasks, settings)
    if not arguments.json:
        _explain_omissions(tasks)
    fires = preview([task for task in tasks if task.enabled], start=start, end=end, anchors=anchors)
    if arguments.json:
        rows = ({**fire._asdict(), "at": fire.at, "marks": list(fire.marks)} for fire in fires)
        listing.show(rows, (), as_json=True)
        return 0
    for fire in fires:
        local, at = (
            fire.local.strftime("%Y-%m-%d %H:%M:%S %Z"),
            fire.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        print(f"{local:24} {at}  {fire.task}  {' '.join(fire.marks)}".rstrip())
    return 0


def _explain_omissions(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if not task.enabled:
            print_error(f"{task.name} is disabled")
        elif task.type == "one_shot" and task.run_at is None:
            print_error(f"{task.name} runs {task.delay or 0:g} s after each start of the daemon")


def _anchors(tasks: Sequence[Task], settings: config.Settings) -> dict[str, datetime]:
    """Return the times that intervals are counted from, as far as the store can be read.

    A preview works without them: it counts from the beginning of its period.
    """
    intervals = [task for task in tasks if task.type == "interval"]
    states: Mapping[str, TaskState] = {}
    try:
        if intervals:
            with open_history(settings.database_url) as history:
                states = history.task_states()
    except StoreError as error:
        print_error(f"intervals are counted from the beginning of the period: {error}")
    return {
        task.name: state.anchor_at
        for task in intervals
        if (state := states.get(task.name)) and state.schedule == schedule.identity(task)
    }


def _load(settings: config.Settings) -> Sequence[Task]:
    loaded = load_tasks(settings.scheduler_dir)
    print_error(*(f"left out: {problem}" for problem in loaded.problems))
    return loaded.entries


def _find(tasks: Sequence[Task], name: str) -> Task:
    for task in tasks:
        if task.name == name:
            return task
    raise CommandError(f"there is no task {name!r}; `clarad tasks list` lists them")


def _time(text: str) -> datetime:
    """Parse a time on the command line; without an offset it is in the machine's time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write it like 2027-03-28 or 2027-03-28T02:30"
        ) from None
    if not MINYEAR < time.year < MAXYEAR:  # at the ends, not every zone has a time for it
        raise argparse.ArgumentTypeError(f"write a year from {MINYEAR + 1} to {MAXYEAR - 1}")
    try:
        if time.tzinfo is None:
            time = timezone.instant(time, timezone.of_machine())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return time.astimezone(UTC)
