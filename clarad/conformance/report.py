"""The verdicts on promises, and how they are shown."""

from collections.abc import Iterable
from typing import NamedTuple, TextIO

from clarad.adapters.terminal import HARMLESS


class Broken(Exception):  # noqa: N818 - what the checks are for
    """A promise is broken; the text says what happened, in one line."""


class Verdict(NamedTuple):
    """A promise, the section that makes it, and how it was broken, if it was."""

    section: int
    promise: str
    broken: str | None = None
    unseen: bool = False
    """The check could not tell whether the promise is kept."""


def show(verdicts: Iterable[Verdict], out: TextIO) -> bool:
    """Write a line for each promise; return whether none was broken."""
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
