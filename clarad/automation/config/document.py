"""Reads a YAML file into a tree of nodes that know their lines.

No node is turned into an object: a tag such as `!!python/object` stays a word in the tree.
"""

import re
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import Node

LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml is ten times as fast, but PyYAML may have been built without it."""

# Control characters that YAML forbids: https://yaml.org/spec/1.1, section 4.1.1.
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")

# The messages of libyaml and of PyYAML's own parser, and the sentences that replace them. Those in
# the first table are about the line where a construct begins, the others about the line where the
# parser gave up.
_AT_BEGINNING: Final = {
    r"scanning an alias": "a value cannot begin with *: put it in quotes",
    r"scanning an anchor": "a value cannot begin with &: put it in quotes",
    r"quoted scalar, .*end of stream": "this quote is never closed: close it",
    r"simple key, ": "this is not a key: write a colon after it, or indent it if it belongs to "
    "the value above",
    r"flow (sequence|mapping)": "this bracket is not closed: close it, or put a value that begins "
    "with one in quotes",
}
_AT_END: Final = {
    r"tab character": "a tab is in the indentation: write spaces",
    r"undefined alias": "a value that begins with * has to be in quotes, unless it names an anchor",
    r"mapping values are not": "this colon is in the wrong place: indent the keys of an entry "
    'alike, and put a value that has ": " in it in quotes',
    r"sequence entries are not": "a list cannot begin here: begin it on a line of its own, or put "
    "a value that begins with - in quotes",
    r"parsing a block": "this does not fit what is above: indent the keys of an entry alike, and "
    "end a value where its quotes end",
    r"escape|hexa?decimal": "a backslash in double quotes begins an escape: write it twice, or use "
    "single quotes",
    r"another document|document start": "a second document begins here: a file has one",
    r"duplicate anchor": "an anchor above has the same name: choose another",
    r"tag": "a value that begins with ! has to be in quotes",
    r"block scalar": "the text after | or > has to begin on the next line",
}


class DocumentError(Exception):
    """The file cannot be read as YAML; the text is one sentence. Lines count from 1."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def line_of(node: Node) -> int:
    """Return the line on which a node begins."""
    line: int = node.start_mark.line
    return line + 1


def read(path: Path) -> Node | None:
    """Read a file that holds one YAML document.

    Returns:
        Its root; `None` if there is no file, or nothing in it.

    Raises:
        DocumentError: it cannot be read, or is not YAML.
    """
    text = _text(_content(path))
    try:
        return yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        raise _explain(error, text) from None
    except (yaml.YAMLError, ValueError, OverflowError):  # yaml.SafeLoader: chr() of "\UFFFFFFFF"
        raise DocumentError(None, "this is not YAML") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise DocumentError(None, "the link leads nowhere: fix it, or remove it") from None
        return b""
    except IsADirectoryError:  # a container's volume whose source was missing, for example
        raise DocumentError(None, "this is a directory: put a file in its place") from None
    except OSError as error:
        raise DocumentError(
            None, f"the file cannot be read ({error.strerror}): let the daemon's user read it"
        ) from None


def _text(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, "this is not UTF-8: save the file as UTF-8") from None
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        code = f"U+{ord(found[0]):04X}"
        raise DocumentError(line, f"the control character {code} cannot be in YAML: take it out")
    return text


def _explain(error: yaml.MarkedYAMLError, text: str) -> DocumentError:
    message = f"{error.context}, {error.problem}"
    end = error.problem_mark
    for pattern, sentence in _AT_BEGINNING.items():
        if re.search(pattern, message) and error.context_mark is not None:
            return DocumentError(error.context_mark.line + 1, sentence)
    line = None if end is None else end.line + 1
    if end is not None and "start any token" in message:
        character = text[end.index : end.index + 1]
        if character != "\t":
            return DocumentError(line, f"a value cannot begin with {character}: put it in quotes")
        message = "tab character"
    for pattern, sentence in _AT_END.items():
        if re.search(pattern, message):
            return DocumentError(line, sentence)
    return DocumentError(line, f"this is not YAML: {error.problem}")
