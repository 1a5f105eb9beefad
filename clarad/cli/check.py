"""`clarad check`: what is wrong with the configuration, all of it, before the daemon meets it."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clarad import config
from clarad.automation.hook import Hook, load_hooks
from clarad.automation.task import Task, load_tasks
from clarad.cli import fail


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Read the whole configuration and say everything that is wrong in one go, with what to\n"
        "write instead. The exit status is 0 if the daemon can start with it, else 1."
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Check the settings, then whether what they name can be used."""
    problems: list[str] = []
    try:
        settings, warnings = config.load()
    except config.ConfigError as error:
        settings, warnings, problems = error.settings, error.warnings, error.problems
    problems += filter(None, [_state_dir_problem(settings.state_dir) or _store_problem(settings)])
    problems += filter(None, [_tls_problem(settings), _socket_problem(settings.gateway_socket)])
    doubts, missing = _engine(settings)
    warnings += doubts
    problems += missing
    hooks, tasks = load_hooks(settings.hooks_dir), load_tasks(settings.scheduler_dir)
    problems += map(str, [*hooks.problems, *tasks.problems])
    warnings += _doubts(settings.hooks_dir / "hooks.yaml", hooks.entries)
    warnings += _doubts(settings.scheduler_dir / "scheduler.yaml", tasks.entries)
    fail(*(f"warning: {warning}" for warning in warnings), *problems)
    if problems:
        return 1
    found = f"{_count(hooks.entries, 'hook')}, {_count(tasks.entries, 'task')}"
    print(f"The configuration is good: {found}.")
    return 0


def _state_dir_problem(state_dir: Path) -> str | None:
    """Say why the directory could not be made, or written to, without making it."""
    try:
        existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    except OSError as error:
        return f"CLARA_STATE_DIR: {error.strerror}: {state_dir}"
    if not existing.is_dir():
        return f"CLARA_STATE_DIR: {existing} is not a directory; name one"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"CLARA_STATE_DIR: {existing} cannot be written to; name a directory of your own"
    return None


def _tls_problem(settings: config.Settings) -> str | None:
    from clarad.tls import TlsError, server_context

    try:
        server_context(settings)
    except TlsError as error:
        return str(error)
    return None


def _socket_problem(path: Path | None) -> str | None:
    """Say why the socket file could not be made, without making it."""
    if path is None:
        return None
    try:
        if path.exists() and not path.is_socket():
            return f"CLARA_GATEWAY_SOCKET: {path} is in the way; move it, or name another file"
    except OSError as error:
        return f"CLARA_GATEWAY_SOCKET: {error.strerror}: {path}"
    if not path.parent.is_dir():
        return f"CLARA_GATEWAY_SOCKET: {path.parent} is not a directory; make it"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"CLARA_GATEWAY_SOCKET: {path.parent} cannot be written to; name another directory"
    return None


def _store_problem(settings: config.Settings) -> str | None:
    """Look into the database, without changing or creating anything."""
    from clarad.store import StoreError, migrate, open_engine

    try:
        engine = open_engine(settings.database_url, read_only=True)
        try:
            behind = migrate.is_behind(engine)
        finally:
            engine.dispose()
    except StoreError as error:
        name = "DATABASE_URL" if os.environ.get("DATABASE_URL") else "CLARA_STATE_DIR"
        return f"{name}: {error}"
    if behind and not settings.auto_migrate:
        return "the database is behind and CLARA_AUTO_MIGRATE=0 is set: run `clarad migrate`"
    return None


def _engine(settings: config.Settings) -> tuple[list[str], list[str]]:
    """Ask the engine of the sandboxes; return what holds less than it should, and what is missing.

    Nothing is made there, so what only shows in a sandbox is for `clarad sandbox doctor`.
    """
    if settings.sandbox.mode == "off":
        return [], []
    import trio

    from sandbox import EngineError, check_engine

    try:
        return trio.run(check_engine, settings.sandbox), []
    except EngineError as error:
        return [], [str(error)]


def _doubts(path: Path, entries: Sequence[Hook | Task]) -> Iterator[str]:
    """Say what is probably a mistake and may yet be none: directories can be made later."""
    namesake = path.with_suffix(".yml")
    if not os.path.lexists(path) and os.path.isfile(namesake):
        yield f"{namesake} is not read; call it {path.name}"
    first_in = {entry.working_dir: entry.name for entry in reversed(entries)}
    for directory, name in reversed(first_in.items()):
        if not os.path.isdir(directory):
            yield f"{path}: the working_dir of {name!r} is no directory; make it: {directory}"


def _count(entries: Sequence[object], noun: str) -> str:
    return f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'}"
