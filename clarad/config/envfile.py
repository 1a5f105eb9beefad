"""The file of settings that `CLARA_ENV_FILE` names, in the form of systemd's `EnvironmentFile=`.

The unit has systemd read the same file, so the rules are those of systemd.exec(5) and of its
`parse_env_file_internal`, to the letter. What systemd would pass over in silence is refused here: a
line that is no assignment, a quote that is never closed. Libraries for `.env` files read another
language: they cut comments off values and expand `$NAME`.
"""

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "CLARA_ENV_FILE"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENDS_A_LINE: Final = ("", "\n", "\r")
"""The end of the file is one, too."""

_SPACE: Final = " \t\r\n"
_IN_DOUBLE_QUOTES: Final = '"\\`$'
"""What a backslash takes its meaning from within double quotes."""


class EnvFileError(Exception):
    """The file cannot be used; `problems` has one sentence for each mistake in it.

    `found` has the assignments without mistakes.
    """

    def __init__(self, problems: list[str], found: Mapping[str, str] | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.found = found or {}


class Overlay:
    """An environment with the variables of the file on top; `read` reads the file again."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Add the variables of the file, if `environ` names one, to `environ`.

        Raises:
            EnvFileError: the file cannot be used.
        """
        self._environ = environ
        path = environ.get(VARIABLE, "").strip()
        self._path = Path(path) if path else None
        self._in_file = self._read()
        environ.update(self._in_file)

    def read(self) -> dict[str, str]:
        """Return the environment with the variables that the file has now; changes nothing.

        A variable that was removed from the file is not set, even if it came from elsewhere, too:
        systemd passes the file's variables to the process as well, so the two look the same.

        Raises:
            EnvFileError: the file cannot be used.
        """
        return {k: v for k, v in self._environ.items() if k not in self._in_file} | self._read()

    def replace(self, environ: Mapping[str, str]) -> None:
        """Put the environment that `read` has returned in force."""
        self._in_file |= {k: v for k, v in environ.items() if self._environ.get(k) != v}
        for name in self._in_file.keys() - environ.keys():
            del self._environ[name], self._in_file[name]
        self._environ.update(environ)

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            text = self._path.read_bytes().decode()
        except OSError as error:
            raise EnvFileError([f"{VARIABLE}: {error.strerror}: {self._path}"]) from None
        except UnicodeDecodeError:
            raise EnvFileError([f"{self._path}: write it in UTF-8"]) from None
        found, problems = parse(text)
        if problems:
            raise EnvFileError([f"{self._path}:{problem}" for problem in problems], found)
        return found


def parse(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables, and what is wrong: sentences that begin with a line's number."""
    parser = _Parser(text)
    found = {}
    for line, name, value in parser.assignments():
        if not _NAME.fullmatch(name):
            parser.note(line, f"{name!r} is not the name of a variable; write NAME=value")
        elif "\0" in value:
            parser.note(line, f"{name} has a NUL character in it; remove it")
        else:
            found[name] = value
    return found, parser.problems


class _Parser:
    """Walks through the text once; each method continues where the last one has stopped."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.problems: list[str] = []

    def note(self, line: int, problem: str) -> None:
        """Note what is wrong with a line."""
        self.problems.append(f"{line}: {problem}")

    def assignments(self) -> Iterator[tuple[int, str, str]]:
        """Yield line, name and value."""
        while self._skip_to_a_name():
            line = self._line
            if (key := self._key()) is None:
                self.note(line, "this is no assignment; write NAME=value, or # before a comment")
            elif (value := self._value()) is None:
                self.note(line, "a quote is opened here and never closed")
            else:
                yield line, key, value

    @property
    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _take(self) -> str:
        """Return the next character, `""` at the end."""
        taken = self._text[self._at : self._at + 1]
        self._at += 1
        return taken

    def _skip_to_a_name(self) -> bool:
        while taken := self._take():
            if taken in "#;":
                self._skip_comment()
            elif taken not in _SPACE:
                self._at -= 1
                return True
        return False

    def _skip_comment(self) -> None:
        line, last = self._line, ""
        while (taken := self._take()) not in _ENDS_A_LINE:
            last = taken
        if last == "\\":  # systemd went on with the comment until version 254, and since does not
            self.note(line, "a comment may not end in a backslash; remove it")

    def _key(self) -> str | None:
        key = ""
        while (taken := self._take()) not in _ENDS_A_LINE:
            if taken == "=":
                return key.rstrip(_SPACE)
            key += taken
        return None

    def _value(self) -> str | None:
        """Read up to the end of the value; `None` if a quote is open at the end of the file."""
        value = ""
        while True:
            match taken := self._take():
                case "" | "\n" | "\r":
                    return value
                case "'":
                    if (quoted := self._in_single_quotes()) is None:
                        return None
                    value += quoted
                case '"':
                    if (quoted := self._in_double_quotes()) is None:
                        return None
                    value += quoted
                case " " | "\t":
                    pass
                case _:
                    self._at -= len(taken)
                    return value + self._bare()

    def _bare(self) -> str:
        """Read text without quotes; after its first character, quotes are ordinary characters."""
        kept, spaces = "", ""
        while (taken := self._take()) not in _ENDS_A_LINE:
            if taken == "\\":
                escaped = self._take()
                kept, spaces = kept + spaces + escaped.strip("\n\r"), ""
            elif taken in _SPACE:
                spaces += taken
            else:
                kept, spaces = kept + spaces + taken, ""
        return kept

    def _in_single_quotes(self) -> str | None:
        value, quote, _ = self._text[self._at :].partition("'")
        self._at += len(value) + 1
        return value if quote else None

    def _in_double_quotes(self) -> str | None:
        value = ""
        while taken := self._take():
            if taken == '"':
                return value
            if taken == "\\":
                escaped = self._take()
                if escaped not in ("\n", "\r"):
                    value += escaped if escaped in _IN_DOUBLE_QUOTES else taken + escaped
            else:
                value += taken
        return None
