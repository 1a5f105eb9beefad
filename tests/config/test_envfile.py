"""The file of settings means what it means to systemd, and what would be passed over is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clarad.config.envfile import EnvFileError, Overlay, parse

# AttemptResult with systemd 252: tests/on_systemd/test_settings.py has it read these texts.
MEANT_BY_SYSTEMD = {
    "A=1": {"A": "1"},
    "A=1\nB=2\n": {"A": "1", "B": "2"},
    "  A = 1  ": {"A": "1"},
    "# a comment\n; another\n\nA=1": {"A": "1"},
    "A=": {"A": ""},
    "A=one two ": {"A": "one two"},
    "A=one # no comment": {"A": "one # no comment"},
    "A=a=b": {"A": "a=b"},
    "A='one  two '": {"A": "one  two "},
    'A="one  two "': {"A": "one  two "},
    "A='$HOME \\n'": {"A": "$HOME \\n"},
    'A="\\"quoted\\" \\$HOME \\\\ \\n"': {"A": '"quoted" $HOME \\ \\n'},
    "A=$HOME": {"A": "$HOME"},
    "A='one''two'": {"A": "onetwo"},
    "A='one' \"two\"": {"A": "onetwo"},
    "A='one'two": {"A": "onetwo"},
    "A=one'two'": {"A": "one'two'"},
    "A=one\\\ntwo": {"A": "onetwo"},
    'A="one\\\ntwo"': {"A": "onetwo"},
    "A='one\ntwo'\nB=3": {"A": "one\ntwo", "B": "3"},
    "A=one\\ ": {"A": "one "},
    "A=1\nA=2": {"A": "2"},
    "A=1\r\nB=2\r\n": {"A": "1", "B": "2"},
    "A=1\rB=2": {"A": "1", "B": "2"},
    "A='1\r\n2'": {"A": "1\r\n2"},
    "A=1\\\r\nB=2": {"A": "1", "B": "2"},
}


@pytest.mark.parametrize("text", MEANT_BY_SYSTEMD)
def test_a_text_means_what_it_means_to_systemd(text: str) -> None:
    assert parse(text) == (MEANT_BY_SYSTEMD[text], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\nA", "2: this is no assignment; write NAME=value, or # before a comment"),
        ("export A=1", "1: 'export A' is not the name of a variable; write NAME=value"),
        ("1A=1", "1: '1A' is not the name of a variable; write NAME=value"),
        ("=1", "1: '' is not the name of a variable; write NAME=value"),
        ("B=1\nA='one", "2: a quote is opened here and never closed"),
        ('A="one\n\n', "1: a quote is opened here and never closed"),
        ("# one \\\nA=1", "1: a comment may not end in a backslash; remove it"),
        ("A=a\0b", "1: A has a NUL character in it; remove it"),
    ],
)
def test_what_systemd_would_pass_over_is_named(text: str, problem: str) -> None:
    assert parse(text)[1] == [problem]


def test_everything_that_is_wrong_is_named() -> None:
    found, problems = parse("A=1\noops\nB=2\n2=3\n")
    assert found == {"A": "1", "B": "2"}
    assert [problem.partition(":")[0] for problem in problems] == ["2", "4"]


@given(st.text())
@example("\\")
@example('A="\\')
def test_any_text_is_understood_or_refused(text: str) -> None:
    found, problems = parse(text)
    assert all(value is not None for value in found.values())
    assert all(problem.partition(":")[0].isdigit() for problem in problems)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text()))
def test_what_is_quoted_comes_back(variables: dict[str, str]) -> None:
    variables = {name: value.replace("\0", "") for name, value in variables.items()}
    escaped = {
        name: "".join(f"\\{c}" if c in '"\\`$' else c for c in value)
        for name, value in variables.items()
    }
    text = "".join(f'{name}="{value}"\n' for name, value in escaped.items())
    assert parse(text) == (variables, [])


# --- over an environment -------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "clarad.env"


def test_the_file_goes_before_the_environment(file: Path) -> None:
    file.write_text("A=file\n")
    environ = {"CLARA_ENV_FILE": f"{file}", "A": "environment", "B": "environment"}
    Overlay(environ)
    assert environ == {"CLARA_ENV_FILE": f"{file}", "A": "file", "B": "environment"}


def test_without_a_file_the_environment_is_left_alone() -> None:
    environ = {"A": "1", "CLARA_ENV_FILE": ""}
    overlay = Overlay(environ)
    overlay.replace(overlay.read())
    assert environ == {"A": "1", "CLARA_ENV_FILE": ""}


def test_reading_changes_nothing_until_it_is_taken_on(file: Path) -> None:
    file.write_text("A=1\n")
    environ = {"CLARA_ENV_FILE": f"{file}"}
    overlay = Overlay(environ)
    file.write_text("A=2\n")
    read = overlay.read()
    assert environ["A"] == "1"
    overlay.replace(read)
    assert environ["A"] == "2"


def test_what_is_gone_from_the_file_is_gone(file: Path) -> None:
    file.write_text("A=1\nB=1\n")
    environ = {"CLARA_ENV_FILE": f"{file}", "C": "1"}
    overlay = Overlay(environ)
    for text, left in (("B=2\n", {"B": "2"}), ("A=3\n", {"A": "3"}), ("", {})):
        file.write_text(text)
        overlay.replace(overlay.read())
        assert environ == {"CLARA_ENV_FILE": f"{file}", "C": "1"} | left


def test_a_file_that_cannot_be_read_is_one_sentence(file: Path) -> None:
    with pytest.raises(EnvFileError) as caught:
        Overlay({"CLARA_ENV_FILE": f"{file}"})
    assert caught.value.problems == [f"CLARA_ENV_FILE: No such file or directory: {file}"]
    file.write_bytes(b"A=\xff\n")
    with pytest.raises(EnvFileError) as caught:
        Overlay({"CLARA_ENV_FILE": f"{file}"})
    assert caught.value.problems == [f"{file}: write it in UTF-8"]


def test_what_is_wrong_is_named_with_its_place(file: Path) -> None:
    file.write_text("A=1\noops\n")
    environ = dict(os.environ) | {"CLARA_ENV_FILE": f"{file}"}
    with pytest.raises(EnvFileError, match=r"clarad\.env:2: this is no assignment"):
        Overlay(environ)
    assert "A" not in environ
