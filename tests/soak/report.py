"""What a soak says at its end."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Final

from bench.report import percentile, show
from tests.soak.faults import Happened
from tests.soak.ledger import Asked, Ledger
from tests.soak.measure import Meter, Span
from tests.soak.users import HANGS

MOST_SHOWN: Final = 20
"""Broken promises, and faults during one answer, that are listed; the others are counted."""

MOST_CHARACTERS: Final = 500
"""Of one of them."""


@dataclass(frozen=True)
class Report:
    """Everything there is to say; nothing in `broken` is what it is about."""

    title: str
    log_paths: Sequence[Path]
    """The daemons' logs, a file for each."""
    ledger: Ledger
    meter: Meter
    happened: Sequence[Happened]
    """What went wrong."""
    ran: Mapping[str, int]
    """What else there was, and how often."""
    broken: list[str]

    @property
    def faults(self) -> Counter[str]:
        """How often each kind was."""
        return Counter(fault.kind for fault in self.happened)

    def show(self) -> None:
        """Print it."""
        print(f"\n{self.title}")
        self._show_load()
        self._show_faults()
        head = ["from, s", "faults", "answers", "p50, ms", "p99, ms", "memory, MiB", "at most"]
        show("Over time", head, [self._row(span) for span in self.meter.spans if span.rss])
        self._show_slowest()
        self._show_promises()

    def _show_load(self) -> None:
        asked = self.ledger.asked.values()
        ends = Counter(message.outcome for message in asked if message.outcomes)
        seconds = self.meter.seconds
        _show_pairs(f"Load over {seconds:.0f} s", [
            ("messages asked", f"{len(asked)}"),
            ("answered a second", f"{ends.total() / seconds:.1f}"),
            ("sent twice", f"{self.ledger.sent_twice}"),
            ("refused, and sent again", f"{sum(message.refusals for message in asked)}"),
            ("accepted", f"{ends.total() + len(self.ledger.lost)}"),
            *((f"  ended as {outcome}", f"{times}") for outcome, times in sorted(ends.items())),
            *((what, f"{times}") for what, times in self.ran.items()),
        ])  # fmt: skip

    def _show_faults(self) -> None:
        rows = []
        for kind, times in sorted(self.faults.items()):
            longest = max(one.ended - one.began for one in self.happened if one.kind == kind)
            rows.append([kind, f"{times}", f"{longest:.1f}"])
        rows.append(["all", f"{len(self.happened)}", ""])
        show("Faults", ["kind", "times", "the longest, s"], rows)

    def _row(self, span: Span) -> list[str]:
        faults = sum(
            span.began <= one.began - self.meter.began < span.ended for one in self.happened
        )
        times = [1000 * taken for taken in span.answers]
        fast, slow = (f"{percentile(times, p):.0f}" if times else "-" for p in (50, 99))
        memory = [f"{span.rss[-1] / 1024:.0f}", f"{max(span.rss) / 1024:.0f}"]
        return [f"{span.began:.0f}", f"{faults}", f"{len(times)}", fast, slow, *memory]

    def _show_slowest(self) -> None:
        """Say what the slowest answer waited for; one that hangs waits for its own timeout."""
        answered = [
            message
            for message in self.ledger.asked.values()
            if message.ended_at is not None and message.kind != HANGS
        ]
        if not answered:
            return
        slowest = max(answered, key=lambda message: message.took)
        ahead = [message for message in answered if _is_ahead(message, slowest)]
        print(f"\nThe slowest answer: {slowest.took:.1f} s, to {slowest.id} ({slowest.kind})")
        print(f"  refused {slowest.refusals} times, {len(ahead)} messages before it in its channel")
        meanwhile = [one for one in self.happened if _is_during(one, slowest)]
        for one in meanwhile[:MOST_SHOWN]:
            began, ended = max(0, one.began - slowest.asked_at), one.ended - slowest.asked_at
            print(f"  {began:5.1f} s to {ended:5.1f} s: {one.kind}")
        if len(meanwhile) > MOST_SHOWN:
            print(f"  ... and {len(meanwhile) - MOST_SHOWN} more faults")

    def _show_promises(self) -> None:
        _show_pairs("Promises", [
            ("accepted messages that were lost", f"{len(self.ledger.lost)}"),
            ("messages answered twice", f"{len(self.ledger.answered_twice)}"),
            ("promises broken, those included", f"{len(self.broken)}"),
        ])  # fmt: skip
        for problem in self.broken[:MOST_SHOWN]:
            print(f"BROKEN: {shorten(problem, MOST_CHARACTERS)}")
        if len(self.broken) > MOST_SHOWN:
            print(f"... and {len(self.broken) - MOST_SHOWN} more")
        if not self.broken:
            print("\nEvery promise was kept.")


def _show_pairs(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    first, *others = pairs
    show(title, first, others)


def _is_ahead(message: Asked, other: Asked) -> bool:
    assert message.ended_at is not None
    same = message.channel == other.channel and message.number < other.number
    return same and message.ended_at > other.asked_at


def _is_during(fault: Happened, message: Asked) -> bool:
    assert message.ended_at is not None
    return fault.ended >= message.asked_at and fault.began <= message.ended_at
