"""Sandboxes: they run code that nobody has read, and kill it when they are told to.

    async with open_keeper(load(), "my-program") as keeper:
        sandbox = await keeper.acquire("somebody")
        result = await sandbox.run("echo hello")

Docker and Incus behind one Protocol, on Trio. docs/sandbox.md says what is trusted and what each
wall is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from sandbox.engine import (
    Engine,
    EngineError,
    FileError,
    FullError,
    GoneError,
    Output,
    Result,
    SandboxError,
)
from sandbox.keeper import Keeper, Status
from sandbox.sandbox import Entry, Sandbox
from sandbox.settings import Settings, SettingsError, load

__all__ = [
    "Engine",
    "EngineError",
    "Entry",
    "FileError",
    "FullError",
    "GoneError",
    "Keeper",
    "Output",
    "Result",
    "Sandbox",
    "SandboxError",
    "Settings",
    "SettingsError",
    "Status",
    "check_engine",
    "choose_engine",
    "load",
    "make_keeper",
    "open_keeper",
]


async def choose_engine(settings: Settings, name: str) -> Engine:
    """Return the engine that the mode names; for `auto`, Incus if it answers, else Docker.

    Raises:
        EngineError: there is none, or only a weaker one than was asked for.
    """
    # Imported where needed, since an SDK takes longer to import than all the rest.
    if settings.mode in ("auto", "incus", "incus-vm"):
        from sandbox.incus import Incus

        incus = Incus(settings, name)
        if settings.mode != "auto" or await incus.answers():
            return incus
        if settings.incus_type == "vm":
            raise EngineError(
                "INCUS_SANDBOX_TYPE=vm, but no Incus answers, and a Docker container is a weaker "
                "wall: start Incus, or set SANDBOX_MODE=docker"
            )
    if settings.mode == "off":
        raise EngineError("there are no sandboxes: set SANDBOX_MODE to auto, docker or incus")
    from sandbox.docker import Docker

    return Docker(settings, name)


async def check_engine(settings: Settings) -> list[str]:
    """Check that the engine has all that a keeper needs; return what it does not enforce.

    Creates nothing. Waits up to a minute for the engine's answer.

    Raises:
        EngineError: what is missing, and how to get it.
    """
    engine = await choose_engine(settings, "check")
    try:
        return await engine.check()
    finally:
        engine.close()


async def make_keeper(settings: Settings, name: str) -> Keeper:
    """Return a keeper, for the caller to run (`Keeper.run`); raises what `choose_engine` does.

    `name` labels its sandboxes: it is the same after a restart, and different from all other
    keepers' on the engine. It has at most 40 letters, digits and dashes.
    """
    engine = await choose_engine(settings, name)
    own = settings.docker if engine.name == "docker" else settings.incus
    return Keeper(
        engine,
        name,
        pool=settings.pool,
        capacity=settings.max,
        idle_timeout=own.timeout,
        network=settings.network,
    )


@asynccontextmanager
async def open_keeper(settings: Settings, name: str) -> AsyncIterator[Keeper]:
    """Run a keeper within the block; at its end all sandboxes have ended.

    Exceptions of the block are raised without a group around them.

    Raises:
        EngineError: what is missing, and how to get it.
    """
    keeper = await make_keeper(settings, name)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            # An exception of the block is kept in `raised`, past the nursery, which would wrap it
            # in a group. Cancelled has to pass through the nursery, since it may be the nursery's
            # own; the other exceptions of a group with it are kept.
            try:
                await nursery.start(keeper.run)
                yield keeper
            except trio.Cancelled:
                raise
            except BaseExceptionGroup as group:
                cancelled, rest = group.split(trio.Cancelled)
                raised = group if cancelled is None else rest
                if cancelled is not None:
                    raise cancelled from None
            except BaseException as error:
                raised = error
            nursery.cancel_scope.cancel("done with the sandboxes")
    finally:
        if raised is not None:
            raise raised
