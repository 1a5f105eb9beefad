"""The sandboxes of the soaked installation, as their engine knows them."""

from pathlib import Path
from typing import Final

import trio

from clarad import instance
from sandbox import Engine, choose_engine
from tests.sandbox import engines

MODE: Final = next(iter(engines.ANSWERING), None)
"""The engine that is used; without one, messages run beside the daemon only."""

PATIENCE: Final = 60.0
"""Seconds until those of a daemon that was killed have to be gone."""


class Sandboxes:
    """Those of one state directory, on an engine that answers."""

    def __init__(self, mode: str, state_dir: Path) -> None:
        self.settings = engines.variables(mode)
        self._mode = mode
        self._state_dir = state_dir

    async def names(self) -> set[str]:
        """Return what is there."""
        return set(await (await self._engine()).names())

    async def left_of(self, names: set[str]) -> set[str]:
        """Wait until none of these is there, for a while; return those that still are."""
        left = names
        with trio.move_on_after(PATIENCE):
            while left := left & await self.names():
                await trio.sleep(0.1)
        return left

    async def remove(self) -> None:
        """Remove what is there."""
        engine = await self._engine()
        for name in await engine.names():
            await engine.destroy(name)

    async def _engine(self) -> Engine:
        label = instance.label(self._state_dir)
        return await choose_engine(engines.settings(self._mode), label)
