"""What an operator can have the running daemon do, over the control socket or by a signal."""

import codecs
import dataclasses
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import trio

from clarad import config
from clarad.automation import definitions
from clarad.automation.definitions import Definitions
from clarad.automation.hooks.hook import Hook
from clarad.automation.overview import differences, hook_row
from clarad.automation.tasks.assignment import UnknownTask
from clarad.automation.tasks.task import Task
from clarad.config import RELOADED, ConfigError, Settings
from clarad.config.envfile import EnvFileError, Overlay
from clarad.log import NOTICE, hide
from clarad.log.redaction import secrets_in
from clarad.nurseries.hooks import Hooks, UnknownRun
from clarad.nurseries.sandboxes import Sandboxes
from clarad.nurseries.scheduler import Scheduler
from clarad.protocol.control import Refused, Report, pruned
from clarad.store import Ending, StoreError
from clarad.systemd import catalogue
from clarad.systemd.status import Status
from clarad.transport.tls import TlsError, server_context
from clarad.version import VERSION
from sandbox import Result, SandboxError

log = logging.getLogger(__name__)

OnStarted = Callable[[str], None]
OnText = Callable[[str, str], None]


class _Found(NamedTuple):
    """What a reload has read."""

    environ: Mapping[str, str]
    settings: Settings
    defined: Definitions
    warnings: Sequence[str]
    tls: ssl.SSLContext | None


class Operations:
    """The parts of the daemon that an operator can reach; each method raises `Refused`."""

    def __init__(
        self,
        settings: Settings,
        hooks: Hooks,
        scheduler: Scheduler,
        status: Status,
        sandboxes: Sandboxes | None = None,
        *,
        apply: Callable[[Settings, ssl.SSLContext | None], None],
        close_token: Callable[[str], Awaitable[int]],
        check_store: Callable[[], Awaitable[str | None]],
        describe_store: Callable[[], str],
        overlay: Overlay | None = None,
    ) -> None:
        """`apply` puts reloaded settings in force, and a renewed certificate.

        Without an `overlay` there are no settings to reload.
        `close_token` closes the connections of a token, and says how many they were; `check_store`
        says what is wrong with the database, and `describe_store` how large it is.
        """
        self._settings = settings
        self._apply = apply
        self._close_token = close_token
        self._check_store = check_store
        self._describe_store = describe_store
        self._overlay = overlay
        self._sandboxes = sandboxes
        self._hooks = hooks
        self._scheduler = scheduler
        self._status = status
        self._reloading = trio.Lock()  # a reload has awaits in it, and the last one is to win

    async def reload(self) -> Report:
        """Read the settings, hooks.yaml and scheduler.yaml again; one that is bad changes nothing.

        What needs a restart is said, and stays as it is.
        """
        try:
            async with self._reloading:
                with self._status.reloading():
                    report = await self._reload()
        except Refused as refused:
            about = catalogue.RELOAD_REFUSED.about()
            for problem in refused.problems:
                log.error("not reloaded, nothing has changed: %s", problem, extra=about)
            raise
        log.log(NOTICE, "%s", report.text, extra=catalogue.RELOADED.about())
        return report

    async def _reload(self) -> Report:
        before = self._settings
        found = await trio.to_thread.run_sync(self._read_again)
        for warning in found.warnings:
            log.warning("%s", warning, extra=catalogue.CONFIG_QUESTIONABLE.about())
        try:
            # Whoever asked may go meanwhile; tasks without their hooks would be half a reload.
            with trio.CancelScope(shield=True):
                await self._scheduler.replace(found.defined.tasks)
        except StoreError as error:
            raise Refused([f"the store failed, nothing has changed: {error}"]) from None
        self._hooks.replace(found.defined.hooks)
        self._put_in_force(found)
        parts = [summary(found.defined), *_changes(before, found.settings)]
        return Report(f"reloaded: {'; '.join(parts)}")

    def _read_again(self) -> _Found:
        environ: Mapping[str, str] = {}
        settings, warnings = self._settings, list[str]()
        try:
            if self._overlay is not None:
                environ = self._overlay.read()
                settings, warnings = config.load(environ)
            tls = server_context(settings)
        except (EnvFileError, ConfigError) as error:
            raise Refused(error.problems) from None
        except TlsError as error:
            raise Refused([str(error)]) from None
        defined = definitions.load(settings)
        if defined.problems:
            raise Refused([str(problem) for problem in defined.problems])
        hide([*secrets_in(environ), *defined.secrets()])
        return _Found(environ, settings, defined, warnings, tls)

    def _put_in_force(self, found: _Found) -> None:
        if self._overlay is not None:
            self._overlay.replace(found.environ)
        changes = {name: getattr(found.settings, name) for name in RELOADED}
        self._settings = dataclasses.replace(self._settings, **changes)
        self._apply(self._settings, found.tls)

    async def status(self) -> Report:
        """Say how things are; refused if the database fails, without which nothing is answered."""
        runs = f"clarad {VERSION} runs, as process {os.getpid()}"
        if (problem := await self._check_store()) is not None:
            raise Refused([f"{runs}, and {problem}"])
        return Report(f"{runs}\n{self._status.text()}\n{self._describe_store()}")

    async def overview(self, of: Literal["hooks", "tasks"]) -> Report:
        """Say which hooks or tasks run; the text says what a reload would change of them."""
        in_force: dict[str, Sequence[Hook | Task]]
        in_force = {"hooks": self._hooks.current, "tasks": self._scheduler.tasks}
        if of == "tasks":
            rows = await self._scheduler.overview()
        else:
            rows = [hook_row(hook) for hook in self._hooks.current]
        try:
            found = await trio.to_thread.run_sync(self._read_again)
            changes = differences(in_force[of], getattr(found.defined, of))
            text = f"a reload {'; '.join(changes)}" if changes else ""
        except Refused as refused:
            text = f"a reload would be refused: {'; '.join(refused.problems)}"
        return Report(text, rows=rows)

    async def run_task(self, name: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a task now and wait for its end; a cancellation ends only the waiting."""
        try:
            job = self._scheduler.run_now(name, caused_by)
        except UnknownTask as error:
            raise Refused([str(error)]) from None
        started(job.run_id)
        await job.ended.wait()
        return _ended(f"task {name}", job.run_id, job.ending)

    async def pause_task(self, name: str) -> Report:
        """Skip what comes due of a task, until it is resumed."""
        await self._pause(name, on=True)
        return Report(f"task {name} is paused: what comes due is skipped")

    async def resume_task(self, name: str) -> Report:
        """Let a paused task go on."""
        await self._pause(name, on=False)
        return Report(f"task {name} goes on")

    async def replay_run(self, run: str, caused_by: Sequence[str], started: OnStarted) -> Report:
        """Run a hook again for the event that an earlier run had, and wait for its end."""
        try:
            delivery = await self._hooks.replay(run, caused_by)
        except UnknownRun as error:
            raise Refused([str(error)]) from None
        except StoreError as error:
            raise Refused([f"the store failed: {error}"]) from None
        started(delivery.run_id)
        await delivery.ended.wait()
        return _ended(f"hook {delivery.hook.name}", delivery.run_id, delivery.ending)

    def sandbox_status(self) -> Report:
        """Say which sandboxes there are."""
        return Report("", rows=[dataclasses.asdict(one) for one in self._with_sandboxes.status()])

    async def sandbox_exec(self, owner: str, argv: Sequence[str], say: OnText) -> Report:
        """Run a command in an owner's sandbox, and pass on what it writes; cancelling kills it."""
        decoders = {
            stream: codecs.getincrementaldecoder("utf-8")(errors="replace")
            for stream in ("stdout", "stderr")
        }

        def pass_on(stream: str, data: bytes, *, final: bool = False) -> None:
            if text := decoders[stream].decode(data, final):
                say(stream, text)

        with _refusing():
            result = await self._with_sandboxes.execute(owner, argv, pass_on)
        for stream, output in (("stdout", result.stdout), ("stderr", result.stderr)):
            pass_on(stream, output.tail, final=True)
        return Report(_remarks(result), exit_status=result.exit_status)

    async def sandbox_reset(self, owner: str) -> Report:
        """End an owner's sandbox, with its files."""
        with _refusing():
            await self._with_sandboxes.reset(owner)
        return Report(f"{owner} has no sandbox any more; the next use makes a new one")

    async def sandbox_prune(self) -> Report:
        """Remove sandboxes that were left behind."""
        with _refusing():
            removed = await self._with_sandboxes.prune()
        return Report(pruned(removed))

    async def close_token(self, token: str) -> Report:
        """Close the connections of a token that was revoked."""
        count = await self._close_token(token)
        return Report(f"{count} connection{'s' * (count != 1)} of it closed")

    @property
    def _with_sandboxes(self) -> Sandboxes:
        if self._sandboxes is None:
            raise Refused(["there are no sandboxes: set SANDBOX_MODE and start the daemon again"])
        return self._sandboxes

    async def _pause(self, name: str, *, on: bool) -> None:
        try:
            await self._scheduler.pause(name, on=on)
            self._status.changed()
        except UnknownTask as error:
            raise Refused([str(error)]) from None
        except StoreError as error:
            raise Refused([f"the store failed, nothing has changed: {error}"]) from None


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse what no sandbox can be had for."""
    try:
        yield
    except SandboxError as error:
        raise Refused([str(error)]) from None


def _remarks(result: Result) -> str:
    """Say what the output and the exit status do not."""
    cut = result.stdout.cut + result.stderr.cut
    remarks = {
        f"{cut} bytes were cut out of the output": cut > 0,
        "the sandbox ran out of memory": result.out_of_memory,
        "the sandbox ran out of processes": result.out_of_processes,
    }
    return "; ".join(remark for remark, applies in remarks.items() if applies)


def summary(found: Definitions) -> str:
    """Say how much is configured."""
    hooks, tasks = len(found.hooks), len(found.tasks)
    return f"{hooks} hook{'s' * (hooks != 1)}, {tasks} task{'s' * (tasks != 1)}"


def _changes(before: Settings, now: Settings) -> Iterator[str]:
    """Say which settings have changed, and which of them wait for the next start."""
    names = [field.name for field in dataclasses.fields(Settings)]
    changed = [name for name in names if getattr(before, name) != getattr(now, name)]
    if here := [config.variable(name) for name in changed if name in RELOADED]:
        yield f"changed: {', '.join(here)}"
    if later := [config.variable(name) for name in changed if name not in RELOADED]:
        yield f"changed from the next start on: {', '.join(later)}"


def _ended(subject: str, run: str, ending: Ending | None) -> Report:
    if ending is None:
        raise Refused([f"{subject} was not run: the daemon stops, or its store fails; see its log"])
    reason = f": {ending.reason}" if ending.reason else ""
    return Report(f"{subject} {ending.outcome}{reason}", run, ending.outcome.value)
