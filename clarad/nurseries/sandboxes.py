"""The sandboxes of the daemon: the keeper's place in the tree, and the tools that use it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import trio

from sandbox import EngineError, Keeper, Result, Settings, Status, open_keeper
from sandbox.session import OnOutput
from sandbox.tools import TOOLS, Answer

log = logging.getLogger(__name__)

_TOOLS: Final = {tool.name: tool for tool in TOOLS}


class Sandboxes:
    """One sandbox for each owner; `name` labels them as this installation's."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._keeper: Keeper | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep sandboxes until cancelled; all of them have ended when this returns.

        Raises:
            EngineError: something is missing; the text says how to get it.
        """
        async with open_keeper(self._settings, self._name) as keeper:
            self._keeper = keeper
            log.info("sandboxes are made by %s", keeper.engine.name)
            for warning in keeper.warnings:
                log.warning("%s", warning)
            task_status.started()
            await trio.sleep_forever()

    async def use(
        self,
        tool: str,
        owner: str,
        arguments: Mapping[str, Any],
        *,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Answer:
        """Use a tool in the owner's sandbox. Cancelling kills what runs.

        Raises:
            SandboxError: there is no sandbox to be had; the text says why.
        """
        return await _TOOLS[tool](
            self._running, owner, arguments, on_output=on_output, on_killed=on_killed
        )

    async def execute(self, owner: str, argv: Sequence[str], on_output: OnOutput) -> Result:
        """Run a command in the owner's sandbox; raises, and is cancelled, as `use`."""
        sandbox = await self._running.acquire(owner)
        return await sandbox.run(argv, on_output=on_output)

    async def reset(self, owner: str) -> None:
        """End the owner's sandbox, with its files; the next use makes a new one."""
        await self._running.delete(owner)

    async def prune(self) -> int:
        """Remove the sandboxes that an earlier daemon has left; return how many they were."""
        return await self._running.sweep()

    def status(self) -> list[Status]:
        """Return all sandboxes, the warm ones last."""
        return self._running.status()

    @property
    def _running(self) -> Keeper:
        if self._keeper is None:
            raise EngineError("the sandboxes are being started; try again in a moment")
        return self._keeper
