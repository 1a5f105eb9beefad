"""A crowd that sends rubbish, cuts connections and never reads, and one good client among them."""

import random

import trio

from tests.conftest import Running
from tests.villains import TURNED_AWAY, VILLAINS, Villain


async def plague(running: Running, villain: Villain, seed: int) -> None:
    """Let one villain come back until the test is over."""
    chance = random.Random(seed)
    while True:
        try:
            await villain(running.host, running.port, chance)
        except TURNED_AWAY:
            await trio.lowlevel.checkpoint()  # turned away, as it should be


async def test_a_good_client_is_answered_among_a_hostile_crowd(running: Running) -> None:
    good = await running.node("good")
    async with trio.open_nursery() as crowd:
        for seed, villain in enumerate(VILLAINS * 3):
            crowd.start_soon(plague, running, villain, seed)
        for n in range(60):
            await good.ask(f"m{n}", f"text {n}")
            assert (await good.outcome_of(f"m{n}"))["full_text"] == f"text {n}"
        crowd.cancel_scope.cancel("the good client has been answered often enough")
    assert await good.is_silent()
