"""The sandboxes of the soaked installation, as their engine knows them."""

from pathlib import Path
from typing import Final

import trio

from clarad.config import instance
from sandbox import Engine, EngineError, choose_engine
from tests.sandbox import engines

PATIENCE: Final = 60.0
"""Seconds until those of a daemon that was killed have to be gone."""


def find_mode() -> str | None:
    """Return an engine that answers and has its image; without one, there are no tools."""
    for mode in engines.ANSWERING:
        try:
            trio.run(_check, mode)
        except EngineError:
            continue
        return mode
    return None


async def _check(mode: str) -> None:
    engine = await choose_engine(engines.settings(mode), engines.keeper_name())
    try:
        await engine.check()
    finally:
        engine.close()


class Sandboxes:
    """Those of one state directory, on an engine that answers."""

    def __init__(self, mode: str, state_dir: Path) -> None:
        self.settings = engines.variables(mode)
        self._mode = mode
        self._state_dir = state_dir

    async def names(self) -> set[str]:
        """Return what is there."""
        engine = await self._engine()
        try:
            return set(await engine.names())
        finally:
            engine.close()

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
        try:
            for name in await engine.names():
                await engine.destroy(name)
        finally:
            engine.close()

    async def _engine(self) -> Engine:
        label = instance.label(self._state_dir)
        return await choose_engine(engines.settings(self._mode), label)
