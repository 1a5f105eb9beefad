from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clarad.automation.config import document
from clarad.automation.config.document import DocumentError, line_of
from tests.unprivileged import unprivileged

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

Read = Callable[[str | bytes], yaml.Node | None]

INDENTATION: Final = (
    "this does not fit what is above: indent the keys of an entry alike, and end a value where its "
    "quotes end"
)
COLON: Final = (
    "this colon is in the wrong place: indent the keys of an entry alike, and put a value that has "
    '": " in it in quotes'
)
NOT_A_KEY: Final = (
    "this is not a key: write a colon after it, or indent it if it belongs to the value above"
)
BRACKET: Final = (
    "this bracket is not closed: close it, or put a value that begins with one in quotes"
)
ESCAPE: Final = (
    "a backslash in double quotes begins an escape: write it twice, or use single quotes"
)
TAG: Final = "a value that begins with ! has to be in quotes"
STAR: Final = "a value cannot begin with *: put it in quotes"
TAB: Final = "a tab is in the indentation: write spaces"
SECOND: Final = "a second document begins here: a file has one"

WRONG: Final = {
    "a tab before a dash": ("tasks:\n\t- name: a\n", 2, TAB),
    "a tab before a key": ("tasks:\n  - name: a\n\tcommand: b\n", 3, TAB),
    "a name for an hour": (
        "cron: @hourly\n",
        1,
        "a value cannot begin with @: put it in quotes",
    ),
    "backticks": ("a:\n  b: `date`\n", 2, "a value cannot begin with `: put it in quotes"),
    "a percent sign": ("a: %b\n", 1, "a value cannot begin with %: put it in quotes"),
    "stars": ("type: cron\ncron: * * * * *\n", 2, STAR),
    "a star and a step": ("cron: */5 * * * *\n", 1, STAR),
    "a star alone": ("event: *\n", 1, STAR),
    "an alias of nothing": (
        "event: *tool\n",
        1,
        "a value that begins with * has to be in quotes, unless it names an anchor",
    ),
    "an ampersand": ("a: & b\n", 1, "a value cannot begin with &: put it in quotes"),
    "an anchor twice": (
        "a: &x 1\nb: &x 2\n",
        2,
        "an anchor above has the same name: choose another",
    ),
    "a colon in a value": ("a:\n  command: curl -H A: b\n", 2, COLON),
    "a key too far to the right": ("a:\n  b: c\n    d: e\n", 3, COLON),
    "a key too far to the left": ("a:\n  - b: c\n   d: e\n", 3, INDENTATION),
    "a value that goes on after its quotes": ('a: "b" c\nd: e\n', 1, INDENTATION),
    "a key below a list": ("a:\n  - b\n  c: d\n", 3, INDENTATION),
    "a bracket too many": ("a: [b]]\n", 1, INDENTATION),
    "a key without a colon": ("a:\n  b: c\n  d\n  e: f\n", 3, NOT_A_KEY),
    "the last key without a colon": ("a: b\nc\n", 2, NOT_A_KEY),
    "a double quote too few": ('a:\n  b: "c\n  d: e\n', 2, "this quote is never closed: close it"),
    "a single quote too few": ("a: 'b\nc: d\n", 1, "this quote is never closed: close it"),
    "a list without its end": ("a: [b, c\nd: e\n", 1, BRACKET),
    "a mapping without its end": ("a: {b: c\nd: e\n", 1, BRACKET),
    "an escape that is none": ('a: "grep \\d"\n', 1, ESCAPE),
    "half an escape": ('a: "\\x0"\n', 1, ESCAPE),
    "an exclamation mark": ("a: !b!c d\n", 1, TAG),
    "an empty tag": ("a: !<> d\n", 1, TAG),
    "a list after a key": (
        "a: - b\n",
        1,
        "a list cannot begin here: begin it on a line of its own, or put a value that begins with "
        "- in quotes",
    ),
    "text after a bar": (
        "a: |b\n  c\n",
        1,
        "the text after | or > has to begin on the next line",
    ),
    "a second document": ("a: b\n---\nc: d\n", 2, SECOND),
    "something after the end": ("a: b\n...\nc\n", 3, SECOND),
}


LOADERS: Final = (yaml.CSafeLoader, yaml.SafeLoader)


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml, and as if PyYAML had been built without it."""
    monkeypatch.setattr(document, "LOADER", request.param)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a file and read it."""

    def run(content: str | bytes) -> yaml.Node | None:
        path = tmp_path / "file.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return document.read(path)

    return run


def refusal(read: Read, content: str | bytes) -> tuple[int | None, str]:
    with pytest.raises(DocumentError) as caught:
        read(content)
    return caught.value.line, caught.value.text


# --- what is read --------------------------------------------------------------------------------


def test_every_node_knows_its_line(read: Read) -> None:
    root = read("# a comment\na: b\n\nc:\n  - d\n")
    assert isinstance(root, yaml.MappingNode)
    assert [line_of(key) for key, _ in root.value] == [2, 4]
    assert [line_of(value) for _, value in root.value] == [2, 5]


@pytest.mark.parametrize("nothing", ["", "\n \n", "# a comment\n", b"\xef\xbb\xbf"])
def test_a_file_with_nothing_in_it_has_no_root(read: Read, nothing: str | bytes) -> None:
    assert read(nothing) is None


def test_a_file_that_is_not_there_has_no_root(tmp_path: Path) -> None:
    assert document.read(tmp_path / "file.yaml") is None
    assert document.read(tmp_path / "nowhere" / "file.yaml") is None


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfa: b\n", b"a: b\r\n", b"a: b", b"---\na: b\n...\n"])
def test_editors_of_other_systems_do_no_harm(read: Read, text: bytes) -> None:
    root = read(text)
    assert isinstance(root, yaml.MappingNode)
    [(key, value)] = root.value
    assert (key.value, value.value) == ("a", "b")


def test_nothing_is_made_of_a_tag(read: Read) -> None:
    root = read("!!python/object/apply:os.system [exit 1]\n")
    assert isinstance(root, yaml.SequenceNode)
    assert root.tag == "tag:yaml.org,2002:python/object/apply:os.system"


# --- what is not YAML ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.usefixtures("loader")
def test_what_is_not_yaml_is_said_with_its_line_and_its_fix(read: Read, wrong: str) -> None:
    content, line, text = WRONG[wrong]
    assert refusal(read, content) == (line, text)


def test_what_is_seldom_wrong_is_said_as_the_parser_says_it(read: Read) -> None:
    line, said = refusal(read, "%YAML 3.0\n---\na: b\n")
    assert line == 1
    assert said.startswith("this is not YAML: found incompatible YAML document")


@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"', 'a: "\\U00110000"'])
@pytest.mark.usefixtures("loader")
def test_a_character_that_does_not_exist_is_refused(read: Read, text: str) -> None:
    _, said = refusal(read, text)
    assert said in (ESCAPE, "this is not YAML")


def test_a_file_that_is_not_utf8_is_refused_with_the_line(read: Read) -> None:
    said = "this is not UTF-8: save the file as UTF-8"
    assert refusal(read, "a: b\nc: größer\n".encode("latin-1")) == (2, said)
    assert refusal(read, "a: b\n".encode("utf-16")) == (1, said)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f", "\ufffe"])
def test_a_control_character_is_refused_with_the_line(read: Read, character: str) -> None:
    said = f"the control character U+{ord(character):04X} cannot be in YAML: take it out"
    assert refusal(read, f"a: b\nc: d{character}\n") == (2, said)


# --- what is no file -----------------------------------------------------------------------------


UNREADABLE: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "a directory": (Path.mkdir, "this is a directory: put a file in its place"),
    "a link to nothing": (
        lambda path: path.symlink_to("nothing"),
        "the link leads nowhere: fix it, or remove it",
    ),
    "a link to itself": (
        lambda path: path.symlink_to(path),
        "the file cannot be read (Too many levels of symbolic links): let the daemon's user read "
        "it",
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_file_to_be_read_is_refused(tmp_path: Path, what: str) -> None:
    make, said = UNREADABLE[what]
    make(tmp_path / "file.yaml")
    with pytest.raises(DocumentError) as caught:
        document.read(tmp_path / "file.yaml")
    assert (caught.value.line, caught.value.text) == (None, said)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").touch(0)
    with unprivileged(), pytest.raises(DocumentError) as caught:
        document.read(tmp_path / "file.yaml")
    said = "the file cannot be read (Permission denied): let the daemon's user read it"
    assert (caught.value.line, caught.value.text) == (None, said)


def test_a_link_to_a_file_is_read(read: Read, tmp_path: Path) -> None:
    read("a: b")
    (tmp_path / "link").symlink_to("file.yaml")
    assert document.read(tmp_path / "link") is not None


# --- whatever is written -------------------------------------------------------------------------

marks = st.sampled_from("[]{}-:,&*!|>'\"%@`#?\\~=<\n\t\r\x85\u2028\ufeff1aé😀")
words = st.sampled_from(
    ["\n  ", ": ", "- ", "? ", "<<", "&a ", "*a", "!!", "---", "...", "%YAML 1.1\n", "\\x", "\r\n"]
)


@relaxed
@given(st.lists(marks | words).map("".join) | st.text() | st.binary())
@example("? ")
@example("'\u2028")
def test_whatever_is_written_it_is_read_or_refused(read: Read, content: str | bytes) -> None:
    if isinstance(content, str):
        content = content.encode(errors="surrogatepass")
    outcomes = []
    for loader in LOADERS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(document, "LOADER", loader)
            try:
                read(content)
            except DocumentError as error:
                outcomes.append(error)
    assert all(refused.text for refused in outcomes)
    assert all(refused.line is None or refused.line >= 1 for refused in outcomes)
