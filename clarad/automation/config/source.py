"""One YAML file while it is read: its mappings, and everything that is wrong with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from clarad.automation.config.document import MAX_DEPTH, DocumentError, line_of
from clarad.automation.config.values import excerpt, is_merge, is_tagged, nearest, shown

MAX_VALUES: Final = 1_000_000
"""What a file may stand for, each alias counted as what it names: a short one can be a billion."""


class Problem(NamedTuple):
    """What is wrong, in one sentence with the mend. Lines count from 1."""

    path: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.text}"


class Pair(NamedTuple):
    """A key of a mapping, and what is there."""

    key: Node
    value: Node


class Source:
    """One file while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: dict[Problem, None] = {}
        """In order; what an alias brings into several entries is wrong once."""
        self.count = 0
        """How often something was wrong."""
        self._left = MAX_VALUES
        self._meant: dict[Node, str | None] = {}

    def say(self, line: int | None, text: str) -> None:
        """Note a problem."""
        self.problems[Problem(self.path, line, text)] = None
        self.count += 1

    def problem(self, node: Node, text: str) -> None:
        """Note a problem with what a node stands for."""
        self.say(line_of(node), text)

    def spend(self, count: int) -> None:
        """Count what is read, so that aliases of aliases come to an end.

        Raises:
            DocumentError: it is more than `MAX_VALUES`.
        """
        self._left -= count
        if self._left < 0:
            raise DocumentError(
                None, f"the file stands for more than {MAX_VALUES:,} values: use fewer aliases"
            )

    def refuse_key(self, key: Node, noun: str, keys: tuple[str, ...]) -> str | None:
        """Say that entries have no such key; return the one that was probably meant."""
        if key in self._meant:  # merged into many entries it is looked for once
            self.count += 1
            return self._meant[key]
        meant = self._meant[key] = nearest(key.value, keys)
        mend = f"did you mean {meant}?" if meant else f"write one of {', '.join(keys)}"
        self.problem(key, f"{excerpt(key.value)} is not a key of a {noun}; {mend}")
        return meant

    def pairs(self, mapping: MappingNode, depth: int = 0) -> dict[str, Pair]:
        """Return the keys of a mapping, with those that `<<` merges into it."""
        self.spend(len(mapping.value))
        found: dict[str, Pair] = {}
        merged: list[Pair] = []
        for key, value in mapping.value:
            if is_merge(key):
                merged.append(Pair(key, value))
            elif not isinstance(key, ScalarNode) or is_tagged(key) or not key.value:
                self.problem(key, f"a key is {shown(key)}; write a word")
            elif key.value in found:
                first = line_of(found[key.value].key)
                text = f"{excerpt(key.value)} is here twice, first on line {first}"
                self.problem(key, f"{text}: take one of them out")
            else:
                found[key.value] = Pair(key, value)
        for merge in merged:
            for name, pair in self._merged(merge, depth + 1):
                found.setdefault(name, pair)
        return found

    def _merged(self, merge: Pair, depth: int) -> Iterator[tuple[str, Pair]]:
        """Give what `<<` brings in: of one mapping or of several, of which the first counts."""
        if depth > MAX_DEPTH:
            text = f"<< goes more than {MAX_DEPTH} deep, or round in a circle"
            self.problem(merge.key, f"{text}: take one out")
            return
        is_list = isinstance(merge.value, SequenceNode)
        mappings = merge.value.value if is_list else [merge.value]
        self.spend(len(mappings))
        for mapping in mappings:
            if isinstance(mapping, MappingNode) and not is_tagged(mapping):
                yield from self.pairs(mapping, depth).items()
            else:
                text = f"<< is {shown(mapping)}; write an alias of a mapping"
                self.problem(merge.key, text)
