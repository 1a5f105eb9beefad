"""Parsers for one value of a YAML file.

Each takes a node, and raises a ValueError that says what to write instead.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from clarad.process.shell import MAX_VARIABLE

T = TypeVar("T", bound=str)

MAX_NAME: Final = 255
"""Characters of a name."""

MAX_SECONDS: Final = 1e9
"""About thirty years."""

_YAML: Final = "tag:yaml.org,2002:"
_MERGE: Final = _YAML + "merge"
_NULL: Final = _YAML + "null"
_INT: Final = _YAML + "int"
_BOOL: Final = _YAML + "bool"

_READ_AS: Final = {
    _INT: "a number",
    _YAML + "float": "a number",
    _BOOL: "true or false",
    _YAML + "timestamp": "a time",
}
# YAML gives << and = tags of their own, but as values they are ordinary texts.
_TEXT: Final = frozenset({_YAML + "str", _MERGE, _YAML + "value"})
_TAGS: Final = _TEXT | _READ_AS.keys() | {_NULL, _YAML + "map", _YAML + "seq"}

# https://yaml.org/type/bool.html, as far as PyYAML implements it.
_BOOLEANS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHOWN: Final = 60  # characters


def is_null(node: Node) -> bool:
    """Return whether there is no value."""
    return node.tag == _NULL and isinstance(node, ScalarNode)


def describe(node: Node) -> str:
    """Return a node as reports name it: as it is written, but short and on one line."""
    if is_tagged(node):
        return f"tagged {excerpt(_short(node.tag))}"
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    text: str = node.value
    if not text:
        return "empty"
    is_plain = isinstance(node, ScalarNode) and not node.style
    return excerpt(text) if is_plain or not text.isprintable() else f'"{excerpt(text)}"'


def excerpt(text: str) -> str:
    """Return the beginning of a text, printable and on one line."""
    cut = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    return cut if cut.isprintable() else ascii(cut)


def nearest(word: str, choices: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that the author of `word` probably meant."""
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word[:MAX_NAME].lower(), lower, n=1, cutoff=cutoff)
    return lower[close[0]] if close else None


def is_merge(key: Node) -> bool:
    """Return whether the key is `<<`, which merges its value into the mapping."""
    return key.tag == _MERGE


def is_tagged(node: Node) -> bool:
    """Return whether a tag such as `!include` asks for more than plain YAML has."""
    return node.tag not in _TAGS


def refuse_tag(node: Node) -> None:
    """Raise for a tag such as `!!python/object` or `!include`."""
    if is_tagged(node):
        raise ValueError(f"take the tag {excerpt(_short(node.tag))} out")


def text(node: Node) -> str:
    """Read a text; if YAML takes it for something else, it must be in quotes."""
    refuse_tag(node)
    if not isinstance(node, ScalarNode):
        raise ValueError("write a text, in quotes if it begins with a bracket")
    if node.tag not in _TEXT:
        read_as = _READ_AS.get(node.tag, "something else")
        raise ValueError(f"YAML reads that as {read_as}: put it in quotes")
    return str(node.value)


def scalar(node: Node) -> str:
    """Read a text, a number or a boolean as it is written."""
    refuse_tag(node)
    if not isinstance(node, ScalarNode):
        raise ValueError("write a text")
    if is_null(node):
        raise ValueError('write a value, or "" for an empty one')
    return str(node.value)


def non_empty_text(node: Node) -> str:
    """Read a text that is not blank."""
    found = text(node)
    if not found.strip():
        raise ValueError("write something")
    return found


def name(node: Node) -> str:
    """Read the name of an entry."""
    found = non_empty_text(node)
    if len(found) > MAX_NAME or not found.isprintable():
        raise ValueError(f"write at most {MAX_NAME} printable characters")
    return found


def seconds(node: Node) -> float:
    """Read a duration above 0."""
    found = _number(node)
    if not 0 < found < MAX_SECONDS:
        raise ValueError("write a number of seconds above 0 and below 1e9, such as 30 or 0.5")
    return found


def seconds_or_zero(node: Node) -> float:
    """Read a duration."""
    found = _number(node)
    if not 0 <= found < MAX_SECONDS:
        raise ValueError("write a number of seconds from 0 to below 1e9, such as 30 or 0.5")
    return found


def integer(least: int, most: int) -> Callable[[Node], int]:
    """Return a parser of integers within these bounds."""

    def read(node: Node) -> int:
        found = _number(node)
        if not least <= found <= most or not found.is_integer():
            raise ValueError(f"write a whole number from {least} to {most}")
        return int(found)

    return read


retries: Final = integer(0, 100)
"""Reads how often a failed run is retried."""


def boolean(node: Node) -> bool:
    """Read true or false."""
    refuse_tag(node)
    word = node.value.lower() if isinstance(node, ScalarNode) and node.tag == _BOOL else ""
    if word not in _BOOLEANS:
        raise ValueError("write true or false, without quotes")
    return _BOOLEANS[word]


def choice(choices: Sequence[T]) -> Callable[[Node], T]:
    """Return a parser of one of these words."""

    def read(node: Node) -> T:
        found = text(node)
        for each in choices:
            if each == found:
                return each
        close = nearest(found, choices)
        hint = f"did you mean {close}? " if close else ""
        raise ValueError(f"{hint}write one of {', '.join(choices)}")

    return read


def directory(base: Path) -> Callable[[Node], Path]:
    """Return a parser of directories; a relative one is relative to `base`."""

    def read(node: Node) -> Path:
        try:
            return (base / Path(non_empty_text(node)).expanduser()).absolute()
        except RuntimeError:
            raise ValueError("nobody knows where this home is: write the whole path") from None

    return read


def variable(key: str, node: Node) -> str:
    """Read the value of an environment variable called `key`."""
    if not _VARIABLE.fullmatch(key):
        raise ValueError("write a name of letters, digits and _ that does not begin with a digit")
    found = scalar(node)
    if len(found.encode()) > MAX_VARIABLE:  # the shell would cut it off without a word
        raise ValueError(f"write at most {MAX_VARIABLE >> 10} KiB")
    return found


def _number(node: Node) -> float:
    """Read a number, in quotes or not; return NaN for anything else."""
    refuse_tag(node)
    found = node.value if isinstance(node, ScalarNode) else ""
    # `010` is 8 in YAML 1.1, but its author means 10.
    is_octal = node.tag == _INT and re.match(r"[-+]?0[0-9_]", found)
    try:
        return float("nan" if is_octal or not found.isascii() else found)
    except ValueError:
        return float("nan")


def _short(tag: str) -> str:
    return tag.replace(_YAML, "!!")
