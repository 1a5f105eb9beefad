"""A YAML file as a tree of nodes that know their lines.

Nothing is made of the nodes here: a tag such as `!!python/object` stays a word in the tree.
"""

import re
import stat
from pathlib import Path
from typing import Final

import yaml
from yaml.nodes import Node

MAX_BYTES: Final = 16 * 1024 * 1024
"""The size of a file; ten thousand tasks take about 2 MiB."""

MAX_DEPTH: Final = 20
"""Lists and mappings within each other."""

# https://yaml.org/spec/1.1, section 4.1.1.
_NOT_IN_YAML: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)

# What libyaml and PyYAML's own parser say, and what to say instead. The line is that where the
# thing begins, if both the beginning and the end are known and the sentence is about the former.
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
    """There is nothing to be read; the text is one sentence. Lines count from 1."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class _Shallow:
    """Stops at `MAX_DEPTH`: the composer recurses, and libyaml's would exhaust the stack of C."""

    _depth = 0

    def descend_resolver(self, parent: Node | None, _index: object) -> None:
        self._depth += 1
        if parent is not None and self._depth > MAX_DEPTH:
            raise DocumentError(
                line_of(parent), f"this is nested more than {MAX_DEPTH} deep: write it flat"
            )

    def ascend_resolver(self) -> None:
        self._depth -= 1


class SlowLoader(_Shallow, yaml.SafeLoader):
    """For a PyYAML that was built without libyaml."""


Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = SlowLoader

if yaml.__with_libyaml__:

    class FastLoader(_Shallow, yaml.CSafeLoader):
        """Reads ten times as fast."""

    Loader = FastLoader


def line_of(node: Node) -> int:
    """Return the line on which a node begins."""
    line: int = node.start_mark.line
    return line + 1


def read(path: Path) -> Node | None:
    """Read a file that holds one YAML document.

    Returns:
        Its root; `None` if the file is not there, or nothing is in it.

    Raises:
        DocumentError: it cannot be read, or is not YAML.
    """
    content = _content(path)
    text = _text(content)
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise _explained(error, text) from None
    except (yaml.YAMLError, ValueError, OverflowError):  # SlowLoader: chr() and "\UFFFFFFFF"
        raise DocumentError(None, "this is not YAML") from None


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe might wait for ever
            raise DocumentError(None, "this is not a file: put one in its place, or remove it")
        if found.st_size > MAX_BYTES:
            raise DocumentError(None, f"the file is larger than {MAX_BYTES >> 20} MiB: shorten it")
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise DocumentError(None, "the link leads nowhere: mend it, or remove it") from None
        return b""
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
    if found := _NOT_IN_YAML.search(text):
        line = text.count("\n", 0, found.start()) + 1
        code = f"U+{ord(found[0]):04X}"
        raise DocumentError(line, f"the control character {code} cannot be in YAML: take it out")
    return text


def _explained(error: yaml.MarkedYAMLError, text: str) -> DocumentError:
    said = f"{error.context}, {error.problem}"
    end = error.problem_mark
    for pattern, sentence in _AT_BEGINNING.items():
        if re.search(pattern, said) and error.context_mark is not None:
            return DocumentError(error.context_mark.line + 1, sentence)
    line = None if end is None else end.line + 1
    if end is not None and "start any token" in said:
        character = text[end.index : end.index + 1]
        if character != "\t":
            return DocumentError(line, f"a value cannot begin with {character}: put it in quotes")
        said = "tab character"
    for pattern, sentence in _AT_END.items():
        if re.search(pattern, said):
            return DocumentError(line, sentence)
    return DocumentError(line, f"this is not YAML: {error.problem}")
