"""What came of checking promises."""

from collections.abc import Iterable
from typing import NamedTuple, TextIO

from clarad.adapters.terminal import HARMLESS


class Broken(Exception):  # noqa: N818 - what the checks are for
    """A promise is not kept; the text says what was seen, in one line."""


class Verdict(NamedTuple):
    """A promise, the section that makes it, and how it was broken if it was."""

    section: int
    promise: str
    broken: str | None = None
    unseen: bool = False
    """There was no occasion to see whether it is kept."""


def show(verdicts: Iterable[Verdict], out: TextIO) -> bool:
    """Write a line for each promise, as they come in; return whether none was broken."""
    counts = {"kept": 0, "BROKEN": 0, "unseen": 0}
    for section, promise, broken, unseen in verdicts:
        word = "unseen" if unseen else "kept" if broken is None else "BROKEN"
        counts[word] += 1
        out.write(f"{word:6}  {section}  {promise}\n")
        if broken is not None:
            out.write(f"           {broken.translate(HARMLESS)}\n")
        out.flush()
    out.write(", ".join(f"{count} {word}" for word, count in counts.items() if count) + "\n")
    return counts["BROKEN"] == 0
