"""A program that holds a sandbox: `holder MODE KEEPER`. It is there to be killed."""

import sys

import trio

from sandbox import make_keeper
from tests.sandbox import engines


async def main(mode: str, name: str) -> None:
    """Take a sandbox, run something in it, and say so once it runs."""
    keeper = await make_keeper(engines.settings(mode), name)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        sandbox = await keeper.acquire("somebody")
        await sandbox.run(
            "echo; setsid sleep 1000 & exec sleep 1000",
            on_output=lambda *_: print(sandbox.name, flush=True),
        )


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
