"""A keeper on each engine that answers, and a sandbox in it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from sandbox import Keeper, Sandbox
from tests.sandbox import engines

StartKeeper = Callable[..., Awaitable[Keeper]]


@pytest.fixture
async def start_keeper(mode: str, nursery: trio.Nursery) -> AsyncIterator[StartKeeper]:
    """Start keepers on the engine; keyword arguments are variables. They end with the test."""

    async def start(**variables: Any) -> Keeper:
        keeper = await engines.keeper(mode, **variables)
        await nursery.start(keeper.run)
        return keeper

    yield start
    nursery.cancel_scope.cancel("the test has ended")


@pytest.fixture
async def keeper(start_keeper: StartKeeper) -> Keeper:
    """A keeper with the default settings."""
    return await start_keeper()


@pytest.fixture
async def sandbox(keeper: Keeper) -> Sandbox:
    """A sandbox that belongs to somebody."""
    with trio.fail_after(60):
        return await keeper.acquire("somebody")
