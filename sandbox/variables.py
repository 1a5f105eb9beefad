"""Reads settings from environment variables, and collects all that is wrong with them."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


class Variables:
    """The environment as settings are read from it; `problems` has a sentence for each mistake."""

    def __init__(self, environ: Mapping[str, str], confidential: Collection[str] = ()) -> None:
        """`confidential` are names of variables whose values no sentence repeats."""
        self.environ = environ
        self.problems: list[str] = []
        self._confidential = confidential
        self._known: set[str] = set()

    def read(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        """Read one variable; an empty one counts as not set, as compose files write it.

        `parse` raises `ValueError` with what to write instead.
        """
        self._known.add(name)
        text = self.environ.get(name, "").strip()
        if not text:
            return default
        try:
            text.encode()
        except UnicodeEncodeError:  # os.environ keeps such bytes as lone surrogates
            self.problems.append(f"{name}: write it in UTF-8")
            return default
        try:
            return parse(text)
        except ValueError as error:
            shown = name if name in self._confidential else f"{name}={text!r}"
            self.problems.append(f"{shown}: {error}")
            return default

    def unknown(self, *prefixes: str) -> list[tuple[str, str | None]]:
        """Return the unread variables with these prefixes, each with a similar name, if any."""
        names = sorted(self.environ.keys() - self._known)
        return [(name, self._similar(name)) for name in names if name.startswith(prefixes)]

    def _similar(self, name: str) -> str | None:
        found = difflib.get_close_matches(name, sorted(self._known), n=1, cutoff=0.85)
        return found[0] if found else None
