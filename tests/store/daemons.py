"""Daemons that share a database, as far as their stores can tell them apart."""

from collections.abc import Awaitable, Callable

import trio
from sqlalchemy import Engine

from clarad.store import Life, Notice, Writer
from clarad.store.members import Members


class Daemon(Members):
    """A life on the database, with a writer, and with an ear for what the others say."""

    def __init__(self, engine: Engine, instance: str) -> None:
        super().__init__(engine, Life(), instance=instance, lease=60)
        self.writer = Writer(engine, self.life)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Join the others, and serve."""
        self.connect()
        self.join()
        assert self.life.id is not None
        self.life.owners = frozenset({self.life.id})
        await nursery.start(self.writer.run)

    @property
    def number(self) -> int:
        assert self.life.id is not None
        return self.life.id

    def said(self) -> list[Notice]:
        """Return what was said since, by whomever."""
        self.renew()  # what has been committed has been heard when this is answered
        return self.heard()

    def renew(self) -> None:
        self.look(address="", tasks="", seen_to=())


Share = Callable[[int], Awaitable[list[Daemon]]]
"""Has so many daemons share the test's database."""
