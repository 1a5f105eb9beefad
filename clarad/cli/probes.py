"""Probes of `clarad check`: whether what the settings name can be used; they leave no trace."""

import errno
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from clarad import config
from clarad.automation.config import lint
from clarad.automation.hooks.hook import Hook
from clarad.automation.tasks.task import Task


def state_dir(path: Path) -> Iterator[str]:
    """Yield why the directory cannot be made or written to; remove what the probe has made."""
    try:
        existing = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        yield f"CLARA_STATE_DIR: {error.strerror}: {path}"
        return
    if not existing.is_dir():
        yield f"CLARA_STATE_DIR: {existing} is not a directory; name one"
    elif not _can_write(existing, os.W_OK | os.X_OK):
        yield f"CLARA_STATE_DIR: {_ownership(existing)}"
    elif why := _probe_state_dir(path):
        yield f"CLARA_STATE_DIR: {why}"
    elif existing == path:
        yield from _check_name(path)
        for file in sorted(path.iterdir()):
            if file.is_file() and not _can_write(file, os.R_OK | os.W_OK):
                yield f"CLARA_STATE_DIR: {_ownership(file)}"


def _probe_state_dir(state_dir: Path) -> str | None:
    """Do what the daemon does in its state directory; return what fails, and the fix."""
    from clarad.config import instance

    try:
        instance.probe(state_dir)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "make room on its disk" if is_full else "name a directory that the daemon owns"
        return f"cannot write to {state_dir}: {error.strerror}; {fix}"
    return None


def _check_name(state_dir: Path) -> Iterator[str]:
    """Yield that the installation has lost its name."""
    from clarad.config import instance

    try:
        if (state_dir / instance.FILE_NAME).exists():
            instance.identify(state_dir)
    except instance.Nameless as error:
        yield f"CLARA_STATE_DIR: {error}"
    except OSError:
        pass  # said below, of each file that cannot be read


def _can_write(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _ownership(path: Path) -> str:
    """Return that a file or directory cannot be written, and what to do about it."""
    uid = path.stat().st_uid
    if uid == os.geteuid():
        return f"{path} cannot be written to; `chmod u+rwX {path}`, or name another directory"
    owner = _user(uid)
    return (
        f"{path} belongs to {owner} and cannot be written to; check as the daemon's user "
        f"(`sudo -u {owner} clarad check`), or name a directory of your own"
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"  # as sudo(8) takes it


def other_user(path: Path) -> Iterator[str]:
    """Warn if the state directory is another user's: root can write to it, its owner may not."""
    if os.geteuid() == 0 and path.is_dir() and (uid := path.stat().st_uid) != 0:
        owner = _user(uid)
        yield (
            f"{path} belongs to {owner}, and root sees what {owner} may not; check as that user: "
            f"sudo -u {owner} clarad check"
        )


def port(settings: config.Settings) -> Iterator[str]:
    """Yield why the daemon could not listen on the port."""
    import trio

    from clarad.transport.listeners import CannotListen

    try:
        trio.run(_listen_once, settings)
    except CannotListen as error:
        yield str(error)


async def _listen_once(settings: config.Settings) -> None:
    """Listen for a moment, unless the daemon runs and does it already."""
    from clarad.adapters.operator import NoDaemon, OperatorError, open_operator
    from clarad.transport.listeners import TcpEndpoint

    try:
        async with open_operator(settings.state_dir):
            return
    except NoDaemon:
        pass
    except OperatorError:  # it runs, and does not talk to this user
        return
    endpoint = TcpEndpoint(settings.gateway_host, settings.gateway_port)
    await endpoint.open()
    endpoint.close()


def tls(settings: config.Settings) -> Iterator[str]:
    """Yield why the certificate cannot be used."""
    from clarad.transport.tls import TlsError, server_context

    try:
        server_context(settings)
    except TlsError as error:
        yield str(error)


def socket_file(path: Path | None) -> Iterator[str]:
    """Yield why the socket file could not be made, without making it."""
    if path is None:
        return
    try:
        if path.exists() and not path.is_socket():
            yield f"CLARA_GATEWAY_SOCKET: {path} is in the way; move it, or name another file"
            return
    except OSError as error:
        yield f"CLARA_GATEWAY_SOCKET: {error.strerror}: {path}"
        return
    if not path.parent.is_dir():
        yield f"CLARA_GATEWAY_SOCKET: {path.parent} is not a directory; make it"
    elif not _can_write(path.parent, os.W_OK | os.X_OK):
        yield f"CLARA_GATEWAY_SOCKET: {path.parent} cannot be written to; name another directory"


def store(settings: config.Settings) -> Iterator[str]:
    """Yield why a start would reject the database; change and create nothing."""
    from clarad.store import StoreError, known, migrate, open_engine
    from clarad.store.engine import sqlite_file
    from clarad.store.lock import require_not_elsewhere

    try:
        require_not_elsewhere(settings.database_url, settings.state_dir)
        engine = open_engine(settings.database_url, read_only=True)
        try:
            known.require_known(engine, settings.state_dir)
            if not (behind := migrate.is_behind(engine)):
                migrate.require_sound(engine)
        finally:
            engine.dispose()
    except StoreError as error:
        name = "DATABASE_URL" if os.environ.get("DATABASE_URL") else "CLARA_STATE_DIR"
        yield f"{name}: {error}"
        return
    path = sqlite_file(settings.database_url)
    if path is not None and path.parent != settings.state_dir and not path.parent.is_dir():
        yield f"DATABASE_URL: {path.parent} is not a directory; make it, for the daemon's user"
    if behind and not settings.auto_migrate:
        yield "the database is behind and CLARA_AUTO_MIGRATE=0 is set: run `clarad migrate`"


def engine(settings: config.Settings) -> tuple[list[str], list[str]]:
    """Ask the sandboxes' engine; return warnings of weaker isolation, and what is missing.

    No sandbox is made: what only a sandbox can show is for `clarad sandbox doctor`.
    """
    if settings.sandbox.mode == "off":
        return [], []
    import trio

    from sandbox import EngineError, check_engine

    try:
        return trio.run(check_engine, settings.sandbox), []
    except EngineError as error:
        return [], [str(error)]


def responder(settings: config.Settings) -> Iterator[str]:
    """Yield why the responder's command could not run."""
    command = settings.responder_command if settings.responder == "command" else None
    if command is not None and (why := lint.check_command(command, Path.cwd())):
        yield f"CLARA_RESPONDER_COMMAND: {why}"


def directory(name: str, path: Path) -> Iterator[str]:
    """Warn if a directory that the environment names is not there."""
    if os.environ.get(name, "").strip() and not os.path.lexists(path):
        yield f"{name}: there is no directory {path}; make it, or name another"


def entries(file: Path, found: Sequence[Hook | Task]) -> Iterator[str]:
    """Warn of what is probably a mistake and may yet be none: what is missing can come later."""
    namesake = file.with_suffix(".yml")
    if not os.path.lexists(file) and os.path.isfile(namesake):
        yield f"{namesake} is not read; call it {file.name}"
    first_in = {entry.working_dir: entry.name for entry in reversed(found)}
    for place, name in reversed(first_in.items()):
        if not os.path.isdir(place):
            yield f"{file}: the working_dir of {name!r} is no directory; make it: {place}"
    commands = (entry for entry in found if entry.command and os.path.isdir(entry.working_dir))
    for entry in commands:
        if why := lint.check_command(entry.command, entry.working_dir, entry.env):
            yield f"{file}: {entry.name!r}: {why}"
