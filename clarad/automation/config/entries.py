"""A YAML file with one list of named entries: typed structs, and everything that is wrong at once.

An entry is good or it is not: one with a problem is left out, whatever its neighbours are.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from yaml.nodes import MappingNode, Node, SequenceNode

from clarad.automation.config import document, values
from clarad.automation.config.document import DocumentError, line_of
from clarad.automation.config.source import Pair, Problem, Source
from clarad.automation.config.values import excerpt, is_null, is_tagged, nearest, shown

__all__ = ["Entry", "Kind", "Loaded", "Problem", "load"]

T = TypeVar("T")
D = TypeVar("D")
Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What a file holds: the good entries in their order, and all problems by their lines."""

    entries: list[T]
    problems: list[Problem]


@dataclass(frozen=True)
class Kind:
    """What the entries of a file are: hooks below `hooks`, say, with these keys."""

    noun: str
    keys: tuple[str, ...]

    @property
    def top(self) -> str:
        """The one key of the file."""
        return f"{self.noun}s"


def load(path: Path, kind: Kind, make: Callable[["Entry"], T]) -> Loaded[T]:
    """Read the entries of a file; raises nothing.

    A file that is not there, or in which nothing is written, has no entries. `make` reads one
    entry; what it returns counts if it has found no problem.
    """
    source = Source(path)
    entries: list[T] = []
    lines: dict[str, int] = {}
    with _no_collections():
        try:
            for node in _nodes(source, kind):
                before = source.count
                entry = Entry(source, kind, node)
                made = make(entry)
                entry.refuse_second(lines)
                if source.count == before:
                    entries.append(made)
        except DocumentError as error:
            source.say(error.line, error.text)
    return Loaded(entries, sorted(source.problems, key=lambda problem: problem.line or 0))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector away: it goes through all nodes again and again.

    Nodes are hardly ever part of a cycle. Another thread that loads may switch the collector on
    early; that costs time, and nothing else.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Entry:
    """One entry, read key by key; what is wrong with it goes to the file's problems.

    A key with nothing after it counts as not there.
    """

    def __init__(self, source: Source, kind: Kind, node: MappingNode) -> None:
        self._source = source
        self._noun = kind.noun
        self._node = node
        self._pairs = source.pairs(node)
        self._meant = {
            source.refuse_key(pair.key, kind.noun, kind.keys)
            for key, pair in self._pairs.items()
            if key not in kind.keys
        }
        self.name = self.need("name", "", values.name, example="backup")

    def __contains__(self, key: str) -> bool:
        return self._value(key) is not None

    def problem(self, key: str, text: str) -> None:
        """Say what is wrong with a key; if it is not there, with the entry."""
        self._source.problem(self._place(key), text)

    def get(self, key: str, default: D, parse: Callable[[Node], T], *, quote: bool = True) -> T | D:
        """Read a key with `parse`, which raises ValueError with what to write instead.

        Without `quote` a problem does not show the value: it is confidential, or long.
        """
        node = self._value(key)
        return default if node is None else self._parse(key, node, default, parse, quote)

    def need(
        self,
        key: str,
        default: D,
        parse: Callable[[Node], T],
        *,
        example: str,
        quote: bool = True,
    ) -> T | D:
        """Read a key that has to be there."""
        self.require(key, example)
        return self.get(key, default, parse, quote=quote)

    def require(self, key: str, example: str) -> None:
        """Refuse the entry if the key is not there; if it is misspelled, that has been said."""
        if key not in self and key not in self._meant:
            self.problem(key, f"this {self._noun} has no {key}; add it, such as {key}: {example}")

    def type(self, types: tuple[Word, ...], default: Word) -> Word | None:
        """Read the key `type`; if it is wrong, `None`: then what else is needed is not known."""
        return self.get("type", None if "type" in self else default, values.choice(types))

    def several(self, key: str, parse: Callable[[Node], T], *, example: str) -> list[T]:
        """Read a key that has to be there, with one value or a list of them."""
        node = self._value(key)
        if not isinstance(node, SequenceNode) or is_tagged(node):
            one = self.need(key, None, parse, example=example)
            return [] if one is None else [one]
        if not node.value:
            self.problem(key, f"{key} is an empty list; write one or more, such as {example}")
        self._source.spend(len(node.value))
        each = (self._parse(key, item, None, parse) for item in node.value)
        return [found for found in each if found is not None]

    def texts(self, key: str, parse: Callable[[str, Node], str], *, example: str) -> dict[str, str]:
        """Read a mapping of texts; `parse` is given each name and its value.

        What is wrong is said without the value, which may be confidential.
        """
        node = self._value(key)
        if node is None:
            return {}
        if not isinstance(node, MappingNode) or is_tagged(node):
            self._source.problem(
                node, f"{key} is {shown(node)}; write a mapping, such as {example}"
            )
            return {}
        found = {}
        for name, pair in self._source.pairs(node).items():
            try:
                found[name] = parse(name, pair.value)
            except ValueError as error:
                self._source.problem(pair.key, f"{key}: {excerpt(name)} is not right; {error}")
        return found

    def fits(self, type_: str, types: Mapping[str, tuple[str, ...]]) -> bool:
        """Refuse the keys that only other types have; whether there are none.

        Args:
            type_: That of this entry.
            types: For a key that not every type has, those that have it.
        """
        misfits = [key for key in types if key in self and type_ not in types[key]]
        for key in misfits:
            theirs = " or ".join(types[key])
            ours = f"type: {type_}" if "type" in self else f"type: {type_}, as it names none"
            text = f"{key} is for type: {theirs}, and this {self._noun} has {ours}"
            self.problem(key, f"{text}; change the type, or take {key} out")
        return not misfits

    def refuse_second(self, lines: dict[str, int]) -> None:
        """Refuse the entry if another has its name; `lines` are those of the names so far."""
        if self.name in lines:
            text = f"another {self._noun} is called {excerpt(self.name)}"
            self.problem("name", f"{text}, on line {lines[self.name]}; rename one of them")
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
            found = shown(node) if quote else "not right"
            self._source.problem(node, f"{key} is {found}; {error}")
            return default


def _nodes(source: Source, kind: Kind) -> Iterator[MappingNode]:
    """Give the entries, as far as they are mappings."""
    root = document.read(source.path)
    if root is None or is_null(root):
        return
    a_list = f"{kind.top}: and below it a list of {kind.top}"
    if not isinstance(root, MappingNode) or is_tagged(root):
        source.problem(root, f"the file is {shown(root)}; write {a_list}")
        return
    pairs = source.pairs(root)
    _refuse_others(source, kind, root, pairs)
    if kind.top not in pairs or is_null(entries := pairs[kind.top].value):
        return
    if not isinstance(entries, SequenceNode) or is_tagged(entries):
        source.problem(
            entries, f"{kind.top} is {shown(entries)}; write {a_list}, each after a dash"
        )
        return
    source.spend(len(entries.value))
    for node in entries.value:
        if isinstance(node, MappingNode) and not is_tagged(node):
            yield node
        else:
            text = f"this {kind.noun} is {shown(node)}; write its keys after the dash"
            source.problem(node, f"{text}, such as - name: backup")


def _refuse_others(
    source: Source, kind: Kind, root: MappingNode, pairs: Mapping[str, Pair]
) -> None:
    """Refuse every key of the file but the one that it has."""
    others = [key for key in pairs if key != kind.top]
    is_missing = len(others) == len(pairs)
    near = [key for key in others if is_missing and nearest(key, (kind.top,))]
    if is_missing and others and not near:
        found = ", ".join(excerpt(key) for key in others[:5])
        text = f"the file has no {kind.top}:, only {found}; write"
        source.problem(root, f"{text} {kind.top}: and below it a list of {kind.top}")
        return
    for key in others:
        mend = f"did you mean {kind.top}?" if key in near else "take it out"
        source.problem(pairs[key].key, f"{excerpt(key)} means nothing here; {mend}")
