"""One YAML file while it is read: its mappings, and all problems with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from clarad.automation.config.document import line_of
from clarad.automation.config.values import describe, excerpt, is_merge, is_tagged, nearest


class Problem(NamedTuple):
    """What is wrong and how to fix it, in one sentence. Lines count from 1."""

    path: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.text}"


class Pair(NamedTuple):
    """A key of a mapping, and its value."""

    key: Node
    value: Node


class Source:
    """One file while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: dict[Problem, None] = {}
        """In the order of their discovery, each once, even if an alias repeats it."""
        self.reports = 0
        """The number of calls of `report`, repetitions included."""

    def report(self, node: Node | None, text: str) -> None:
        """Add a problem with a node, or, without one, with the whole file."""
        self.report_line(None if node is None else line_of(node), text)

    def report_line(self, line: int | None, text: str) -> None:
        """Add a problem with a line."""
        self.problems[Problem(self.path, line, text)] = None
        self.reports += 1

    def report_unknown_key(self, key: Node, noun: str, keys: tuple[str, ...]) -> str | None:
        """Report a key that entries do not have; return the one that was probably meant."""
        meant = nearest(key.value, keys)
        fix = f"did you mean {meant}?" if meant else f"write one of {', '.join(keys)}"
        self.report(key, f"{excerpt(key.value)} is not a key of a {noun}; {fix}")
        return meant

    def pairs(self, mapping: MappingNode, parents: tuple[MappingNode, ...] = ()) -> dict[str, Pair]:
        """Return the keys of a mapping, with those that `<<` merges into it.

        `parents` are the mappings that this one is being merged into.
        """
        found: dict[str, Pair] = {}
        merged: list[Pair] = []
        for key, value in mapping.value:
            if is_merge(key):
                merged.append(Pair(key, value))
            elif not isinstance(key, ScalarNode) or is_tagged(key) or not key.value:
                self.report(key, f"a key is {describe(key)}; write a word")
            elif key.value in found:
                first = line_of(found[key.value].key)
                text = f"{excerpt(key.value)} is here twice, first on line {first}"
                self.report(key, f"{text}: take one of them out")
            else:
                found[key.value] = Pair(key, value)
        for merge in merged:
            for name, pair in self._merged(merge, (*parents, mapping)):
                found.setdefault(name, pair)
        return found

    def _merged(self, merge: Pair, parents: tuple[MappingNode, ...]) -> Iterator[tuple[str, Pair]]:
        """Yield the pairs that `<<` merges, from one mapping or a list of them, the first first."""
        is_list = isinstance(merge.value, SequenceNode)
        mappings = merge.value.value if is_list else [merge.value]
        for mapping in mappings:
            if mapping in parents:
                self.report(merge.key, "<< merges the mapping into itself: take it out")
            elif isinstance(mapping, MappingNode) and not is_tagged(mapping):
                yield from self.pairs(mapping, parents).items()
            else:
                self.report(merge.key, f"<< is {describe(mapping)}; write an alias of a mapping")
