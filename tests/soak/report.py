"""What a soak says at its end."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.report import percentile, show
from tests.soak.ledger import Ledger
from tests.soak.measure import Meter, Span

MOST_SHOWN = 20
"""Broken promises that are listed; the others are counted."""


@dataclass(frozen=True)
class Report:
    """Everything there is to say; nothing in `broken` is what it is about."""

    seed: str
    log_path: Path
    ledger: Ledger
    meter: Meter
    broken: list[str]

    def show(self) -> None:
        """Print it."""
        spans = [span for span in self.meter.spans if span.rss]
        seconds = sum(span.seconds for span in spans)
        asked = self.ledger.asked.values()
        ends = Counter(message.outcome for message in asked if message.outcomes)
        show(f"Load over {seconds:.0f} s", ["", ""], [
            ["messages asked", f"{len(asked)}"],
            ["messages answered a second", f"{ends.total() / seconds:.1f}"],
            ["refused, and sent again", f"{sum(message.refusals for message in asked)}"],
            *([f"ended as {outcome}", f"{times}"] for outcome, times in sorted(ends.items())),
            ["lost", f"{len(self.ledger.lost)}"],
            ["answered twice", f"{len(self.ledger.answered_twice)}"],
        ])  # fmt: skip
        faults = sorted(self.ledger.faults.items())
        show("Faults", ["kind", "times"], [[kind, f"{times}"] for kind, times in faults])
        head = ["from, s", "answers", "p50, ms", "p99, ms", "memory, MiB", "at most"]
        show("Over time", head, [_row(span) for span in spans])
        if answered := [message for message in asked if message.ended_at is not None]:
            slowest = max(answered, key=lambda message: message.took)
            print(f"\nThe slowest was {slowest.id} ({slowest.content}) with {slowest.took:.1f} s")
        for problem in self.broken[:MOST_SHOWN]:
            print(f"BROKEN: {problem}")
        if len(self.broken) > MOST_SHOWN:
            print(f"... and {len(self.broken) - MOST_SHOWN} more")
        print(f"\nseed {self.seed}, the daemon's log is {self.log_path}", flush=True)


def _row(span: Span) -> list[str]:
    times = [1000 * taken for taken in span.answers]
    fast, slow = (f"{percentile(times, p):.0f}" if times else "-" for p in (50, 99))
    last, most = span.rss[-1] / 1024, max(span.rss) / 1024
    return [f"{span.began:.0f}", f"{len(times)}", fast, slow, f"{last:.0f}", f"{most:.0f}"]
