"""Answers and memory over time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from tests.soak.installation import Installation
from tests.soak.ledger import Asked, Ledger
from tests.soak.users import HANGS


@dataclass
class Span:
    """A stretch of the soak: how long answers took, in seconds, and the memory of all daemons
    together, in KiB."""

    began: float
    seconds: float
    answers: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class Meter:
    """Looks once in a while; answers count where they came."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is the length of a stretch."""
        self._seconds = seconds
        self.spans: list[Span] = []
        self.began = 0.0
        """When, as Trio's clock has it."""
        self.seconds = 0.0
        """How long it has been measuring."""

    async def run(self, installations: Sequence[Installation], ledger: Ledger) -> None:
        """Measure until cancelled."""
        self.began = trio.current_time()
        try:
            while True:
                self.seconds = now = trio.current_time() - self.began
                if now >= len(self.spans) * self._seconds:
                    self.spans.append(Span(len(self.spans) * self._seconds, self._seconds))
                found = [rss for one in installations if (rss := one.rss()) is not None]
                if found:
                    self.spans[-1].rss.append(sum(found))
                await trio.sleep(0.25)
        finally:
            for message in ledger.asked.values():
                self._count(message)

    def _count(self, message: Asked) -> None:
        if message.ended_at is not None and message.kind != HANGS:
            at = int((message.ended_at - self.began) / self._seconds)
            span = self.spans[min(at, len(self.spans) - 1)]
            span.answers.append(message.took)
