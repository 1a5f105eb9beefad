"""`clarad hooks`: list hooks and their runs, test a hook, replay a run."""

import argparse
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from clarad import config
from clarad.adapters.operator import NoDaemon
from clarad.adapters.terminal import HARMLESS
from clarad.automation.hooks import attempt
from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.overview import hook_row
from clarad.automation.runs.run import AttemptResult
from clarad.cli import control, listing, parts, print_error, runs
from clarad.cli.parts import CommandError
from clarad.events import Event
from clarad.process import shell
from clarad.protocol.control import ReplayRun
from clarad.store import Outcome
from clarad.store.history import open_history, open_writable
from clarad.store.hook_runs import write_replay

_LIST: Final = ("name", "events", "runs", "enabled", "priority", "last", "last_at")
_RUNS: Final = ("run", "hook", "event_type", "due_at", "state", "attempts", "duration", "reason")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = "Commands and webhooks that run on events; hooks.yaml says which."
    subparsers = parser.add_subparsers(dest="part", metavar="PART", required=True)
    parts.add_json_option(subparsers.add_parser("list", help="the hooks, and how each ran last"))
    runs.add_runs_options(
        subparsers.add_parser("runs", help="what has run, the newest first"), "hook"
    )
    runs.add_show(subparsers)
    test = subparsers.add_parser("test", help="run a hook now, here, and show what it does")
    test.add_argument("name", type=parts.name, metavar="NAME")
    test.add_argument(
        "--event", metavar="FILE", help="the event, JSON as hooks get it (default: a made-up one)"
    )
    replay = subparsers.add_parser(
        "replay", help="run a hook again for the event of an earlier run"
    )
    replay.add_argument("run_id", type=parts.name, metavar="RUN")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails, or what it ran did."""
    functions = {"list": _list, "runs": _runs, "show": runs.show, "test": _test, "replay": _replay}
    return parts.run_part(arguments, functions[arguments.part])


def _list(arguments: argparse.Namespace, settings: config.Settings) -> int:
    with open_history(settings.database_url) as history:
        rows = runs.in_force(settings, "hooks")
        if rows is None:
            rows = [hook_row(hook) for hook in _load(settings)]
        rows = [row | runs.last(history.last_hook_run(row["name"])) for row in rows]
    listing.show(rows, _LIST, as_json=arguments.json)
    return 0


def _runs(arguments: argparse.Namespace, settings: config.Settings) -> int:
    runs.require_state(settings)
    with open_history(settings.database_url) as history:
        rows = history.hook_runs(
            hook=arguments.hook, failed=arguments.failed, limit=arguments.limit
        )
    listing.show(rows, _RUNS, as_json=arguments.json)
    return 0


def _test(arguments: argparse.Namespace, settings: config.Settings) -> int:
    hooks = {hook.name: hook for hook in _load(settings)}
    if arguments.name not in hooks:
        raise CommandError(f"there is no hook {arguments.name!r}; `clarad hooks list` lists them")
    hook = hooks[arguments.name]
    event = (
        _sample_event(hook) if arguments.event is None else _read_event(Path(arguments.event), hook)
    )
    output = shell.Output()
    tried = trio.run(_run_once, hook, event, output)
    for stream, tail in ((sys.stdout, output.stdout), (sys.stderr, output.stderr)):
        text = tail.kept.decode(errors="replace").translate(HARMLESS)
        print(text, end="\n" * (text[-1:] not in ("", "\n")), file=stream, flush=True)
    print_error(f"hook {hook.name} {tried.outcome}{f': {tried.reason}' if tried.reason else ''}")
    return 0 if tried.outcome is Outcome.RAN else 1


async def _run_once(hook: Hook, event: Event, output: shell.Output) -> AttemptResult:
    """Make one attempt; its timeout or Ctrl-C cancels it and kills all processes it started."""
    tried = AttemptResult(Outcome.TIMED_OUT, f"it had not ended within {hook.timeout:g} s")

    async def cancel_at_signal(signals: AsyncIterator[int]) -> None:
        nonlocal tried
        tried = AttemptResult(Outcome.CANCELLED, signal.Signals(await anext(signals)).name)
        nursery.cancel_scope.cancel(tried.reason)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + hook.timeout
            nursery.start_soon(cancel_at_signal, signals)
            tried = await attempt.attempt(
                hook, event, run_id="test", number=1, webhooks=WebhookClient(), output=output
            )
            nursery.cancel_scope.cancel("it has ended")
    return tried


def _replay(arguments: argparse.Namespace, settings: config.Settings) -> int:
    request = ReplayRun("replay", arguments.run_id, control.caused_by())
    try:
        done = control.ask(settings, request, lambda run: print(f"run {run} has begun", flush=True))
    except NoDaemon:
        return _replay_later(arguments, settings)
    print(done.text)
    return 0 if done.outcome == Outcome.RAN else 1


def _replay_later(arguments: argparse.Namespace, settings: config.Settings) -> int:
    hooks = {hook.name for hook in _load(settings) if hook.enabled}
    run = None
    with open_history(settings.database_url) as history:  # it makes no database
        is_known = history.find(arguments.run_id) is not None
    if is_known:
        with open_writable(settings.database_url) as connection:
            run = write_replay(connection, arguments.run_id, hooks)
    if run is None:
        raise CommandError(
            f"there is no run {arguments.run_id!r} of a hook that is configured; "
            "`clarad hooks runs` lists them"
        )
    print(f"no daemon runs; its next start runs this again, as run {run}")
    return 0


def _load(settings: config.Settings) -> Sequence[Hook]:
    loaded = load_hooks(settings.hooks_dir)
    print_error(*(f"left out: {problem}" for problem in loaded.problems))
    return loaded.entries


def _sample_event(hook: Hook) -> Event:
    return Event(
        id="event-test",
        type=min(hook.events),
        timestamp=datetime.now(UTC),
        node_id="test",
        platform=hook.match.get("platform", "cli"),
        user_id="cli-test",
        channel_id="test",
        request_id="test",
        session_id="session-test",
    )


def _read_event(path: Path, hook: Hook) -> Event:
    """Read an event in the form that hooks get on standard input; defaults fill in the rest."""
    try:
        given = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return msgspec.convert(msgspec.to_builtins(_sample_event(hook)) | given, Event)
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{path} is not an event as hooks get it: {error}") from None
