"""Loads a YAML file with one list of named entries into typed structs, and reports all problems.

An entry with a problem is left out; its neighbours are loaded all the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from yaml.nodes import MappingNode, Node, SequenceNode

from clarad.automation.config import document, values
from clarad.automation.config.document import DocumentError, line_of
from clarad.automation.config.source import Pair, Problem, Source
from clarad.automation.config.values import describe, excerpt, is_null, is_tagged, nearest

__all__ = ["Entry", "Kind", "Loaded", "Problem", "load"]

T = TypeVar("T")
D = TypeVar("D")
Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A file's valid entries in their order, and all problems sorted by their lines."""

    entries: list[T]
    problems: list[Problem]


@dataclass(frozen=True)
class Kind:
    """The kind of entry that a file holds: hooks below `hooks`, say, with these keys."""

    noun: str
    keys: tuple[str, ...]

    @property
    def top(self) -> str:
        """The one key at the top of the file."""
        return f"{self.noun}s"


def load(path: Path, kind: Kind, make: Callable[["Entry"], T]) -> Loaded[T]:
    """Read the entries of a file; raises nothing.

    A file that does not exist, or is empty, has no entries. `make` reads one entry; its result is
    left out if it has reported a problem.
    """
    source = Source(path)
    entries: list[T] = []
    lines: dict[str, int] = {}
    try:
        for node in _nodes(source, kind):
            before = source.reports
            entry = Entry(source, kind, node)
            made = make(entry)
            entry.check_unique(lines)
            if source.reports == before:
                entries.append(made)
    except DocumentError as error:
        source.report_line(error.line, error.text)
    return Loaded(entries, sorted(source.problems, key=lambda problem: problem.line or 0))


class Entry:
    """One entry, read key by key; problems with it are reported to its file's `Source`.

    A key without a value counts as missing.
    """

    def __init__(self, source: Source, kind: Kind, node: MappingNode) -> None:
        self._source = source
        self._noun = kind.noun
        self._node = node
        self._pairs = source.pairs(node)
        self._meant = {
            source.report_unknown_key(pair.key, kind.noun, kind.keys)
            for key, pair in self._pairs.items()
            if key not in kind.keys
        }
        self.name = self.get_required("name", "", values.name, example="backup")

    def __contains__(self, key: str) -> bool:
        return self._value(key) is not None

    def report(self, key: str, text: str) -> None:
        """Report a problem with a key, or, if the key is missing, with the entry."""
        self._source.report(self._place(key), text)

    def get(self, key: str, default: D, parse: Callable[[Node], T], *, quote: bool = True) -> T | D:
        """Read a key with `parse`, which raises a ValueError that says what to write instead.

        Without `quote` the report does not show the value: it is confidential, or long.
        """
        node = self._value(key)
        return default if node is None else self._parse(key, node, default, parse, quote)

    def get_required(
        self,
        key: str,
        default: D,
        parse: Callable[[Node], T],
        *,
        example: str,
        quote: bool = True,
    ) -> T | D:
        """Read a key that the entry must have."""
        self.require(key, example)
        return self.get(key, default, parse, quote=quote)

    def require(self, key: str, example: str) -> None:
        """Report a key that is missing, unless a misspelling of it has been reported."""
        if key not in self and key not in self._meant:
            self.report(key, f"this {self._noun} has no {key}; add it, such as {key}: {example}")

    def get_type(self, types: tuple[Word, ...], default: Word) -> Word | None:
        """Read the key `type`; `None` if it is wrong, since then the required keys are unknown."""
        return self.get("type", None if "type" in self else default, values.choice(types))

    def get_list(self, key: str, parse: Callable[[Node], T], *, example: str) -> list[T]:
        """Read a key that the entry must have, with one value or a list of them."""
        node = self._value(key)
        if not isinstance(node, SequenceNode) or is_tagged(node):
            one = self.get_required(key, None, parse, example=example)
            return [] if one is None else [one]
        if not node.value:
            self.report(key, f"{key} is an empty list; write one or more, such as {example}")
        each = (self._parse(key, item, None, parse) for item in node.value)
        return [found for found in each if found is not None]

    def get_mapping(
        self, key: str, parse: Callable[[str, Node], str], *, example: str
    ) -> dict[str, str]:
        """Read a mapping of texts; `parse` gets each name and its value.

        Reports do not show the values, which may be confidential.
        """
        node = self._value(key)
        if node is None:
            return {}
        if not isinstance(node, MappingNode) or is_tagged(node):
            text = f"{key} is {describe(node)}; write a mapping, such as {example}"
            self._source.report(node, text)
            return {}
        found = {}
        for name, pair in self._source.pairs(node).items():
            try:
                found[name] = parse(name, pair.value)
            except ValueError as error:
                self._source.report(pair.key, f"{key}: {excerpt(name)} is not right; {error}")
        return found

    def check_type(self, type_: str, types: Mapping[str, tuple[str, ...]]) -> bool:
        """Report the keys that only other types have; return whether there are none.

        Args:
            type_: The type of this entry.
            types: For each key that some types do not have, the types that have it.
        """
        misfits = [key for key in types if key in self and type_ not in types[key]]
        for key in misfits:
            theirs = " or ".join(types[key])
            ours = f"type: {type_}" if "type" in self else f"type: {type_}, as it names none"
            text = f"{key} is for type: {theirs}, and this {self._noun} has {ours}"
            self.report(key, f"{text}; change the type, or take {key} out")
        return not misfits

    def check_unique(self, lines: dict[str, int]) -> None:
        """Report the entry if an earlier one has its name; `lines` has the line of each name."""
        if self.name in lines:
            text = f"another {self._noun} is called {excerpt(self.name)}"
            self.report("name", f"{text}, on line {lines[self.name]}; rename one of them")
        elif self.name:
            lines[self.name] = line_of(self._place("name"))

    def _value(self, key: str) -> Node | None:
        pair = self._pairs.get(key)
        return None if pair is None or is_null(pair.value) else pair.value

    def _place(self, key: str) -> Node:
        pair = self._pairs.get(key)
        return self._node if pair is None else pair.key

    def _parse(
        self,
        key: str,
        node: Node,
        default: D,
        parse: Callable[[Node], T],
        quote: bool = True,
    ) -> T | D:
        try:
            return parse(node)
        except ValueError as error:
            found = describe(node) if quote else "not right"
            self._source.report(node, f"{key} is {found}; {error}")
            return default


def _nodes(source: Source, kind: Kind) -> Iterator[MappingNode]:
    """Yield the entries that are mappings, and report the others."""
    root = document.read(source.path)
    if root is None or is_null(root):
        return
    a_list = f"{kind.top}: and below it a list of {kind.top}"
    if not isinstance(root, MappingNode) or is_tagged(root):
        source.report(root, f"the file is {describe(root)}; write {a_list}")
        return
    pairs = source.pairs(root)
    _report_other_keys(source, kind, root, pairs)
    if kind.top not in pairs or is_null(entries := pairs[kind.top].value):
        return
    if not isinstance(entries, SequenceNode) or is_tagged(entries):
        source.report(
            entries, f"{kind.top} is {describe(entries)}; write {a_list}, each after a dash"
        )
        return
    for node in entries.value:
        if isinstance(node, MappingNode) and not is_tagged(node):
            yield node
        else:
            text = f"this {kind.noun} is {describe(node)}; write its keys after the dash"
            source.report(node, f"{text}, such as - name: backup")


def _report_other_keys(
    source: Source, kind: Kind, root: MappingNode, pairs: Mapping[str, Pair]
) -> None:
    """Report every key at the top of the file that is not `kind.top`."""
    others = [key for key in pairs if key != kind.top]
    is_missing = len(others) == len(pairs)
    near = [key for key in others if is_missing and nearest(key, (kind.top,))]
    if is_missing and others and not near:
        found = ", ".join(excerpt(key) for key in others[:5])
        text = f"the file has no {kind.top}:, only {found}; write"
        source.report(root, f"{text} {kind.top}: and below it a list of {kind.top}")
        return
    for key in others:
        fix = f"did you mean {kind.top}?" if key in near else "take it out"
        source.report(pairs[key].key, f"{excerpt(key)} means nothing here; {fix}")
