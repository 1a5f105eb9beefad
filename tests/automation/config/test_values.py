from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clarad.automation.config import values
from clarad.automation.config.document import LOADER

Parse = Callable[[yaml.Node], Any]


def node(written: str) -> yaml.Node:
    """Return the node of what is written after a key."""
    root = yaml.compose(f"key: {written}\n", Loader=LOADER)
    assert isinstance(root, yaml.MappingNode)
    [(_, value)] = root.value
    assert isinstance(value, yaml.Node)
    return value


def refusal(parse: Parse, written: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(node(written))
    return str(caught.value)


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("echo hello", "echo hello"),
        ('"5"', "5"),
        ("'no'", "no"),
        ("!!str 5", "5"),
        ("=", "="),
        ("<<", "<<"),
        ("2 apples", "2 apples"),
        ("é", "é"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ('"tab\\t"', "tab\t"),
        ('""', ""),
    ],
)
def test_a_text_is_a_text(written: str, text: str) -> None:
    assert values.text(node(written)) == text


NUMBER: Final = "YAML reads that as a number: put it in quotes"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("5", NUMBER),
        ("1.5", NUMBER),
        ("1:30", NUMBER),
        (".inf", NUMBER),
        ("yes", "YAML reads that as true or false: put it in quotes"),
        ("2027-03-28", "YAML reads that as a time: put it in quotes"),
        ("!!map 5", "YAML reads that as something else: put it in quotes"),
        ("[a]", "write a text, in quotes if it begins with a bracket"),
        ("{a}", "write a text, in quotes if it begins with a bracket"),
        ("!!python/object:os.system a", "take the tag !!python/object:os.system out"),
        ("!secret a", "take the tag !secret out"),
        ("!!binary YQ==", "take the tag !!binary out"),
    ],
)
def test_what_is_no_text_is_refused(written: str, said: str) -> None:
    assert refusal(values.text, written) == said


@pytest.mark.parametrize("written", ['""', '" "', '"\\n"'])
def test_some_text_says_something(written: str) -> None:
    assert refusal(values.non_empty_text, written) == "write something"


@pytest.mark.parametrize("written", ["5", "1.50", "yes", "2027-03-28", "0x10", "a", '""'])
def test_what_is_written_is_taken_as_it_is_written(written: str) -> None:
    assert values.scalar(node(written)) == written.strip('"')


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", 'write a value, or "" for an empty one'),
        ("~", 'write a value, or "" for an empty one'),
        ("[a]", "write a text"),
        ("{a}", "write a text"),
    ],
)
def test_what_is_not_written_is_refused(written: str, said: str) -> None:
    assert refusal(values.scalar, written) == said


@pytest.mark.parametrize("written", ["backup", "Nächtliche Sicherung 2", "x" * 255])
def test_a_name_is_printable(written: str) -> None:
    assert values.name(node(written)) == written


@pytest.mark.parametrize("written", ["x" * 256, '"a\\nb"', '"\\e[31m"', '"a\\u200bb"'])
def test_what_cannot_be_shown_is_no_name(written: str) -> None:
    assert refusal(values.name, written) == "write at most 255 printable characters"


# --- numbers -------------------------------------------------------------------------------------

NUMBERS: Final = [
    ("30", 30),
    ("0.5", 0.5),
    ('"30"', 30),
    ("' 1.5 '", 1.5),
    ("1e3", 1000),
    ("1_000", 1000),
    ("+5", 5),
    (".5", 0.5),
    ("08", 8),
]

NO_NUMBERS: Final = ["5m", "[5]", "{5: 6}", "yes", ".nan", ".inf", "nan", "inf", "-1", "1e9", "٣"]
NO_NUMBERS_EITHER: Final = ["9" * 5000, "1e400", "0x10", "010", "1:30", '""', '"1,5"', "!!int x"]


@pytest.mark.parametrize(("written", "number"), NUMBERS)
def test_a_time_is_a_number_of_seconds(written: str, number: float) -> None:
    assert values.seconds(node(written)) == number
    assert values.seconds_or_zero(node(written)) == number


@pytest.mark.parametrize("written", [*NO_NUMBERS, *NO_NUMBERS_EITHER, "0", "-0.0", "1e-400"])
def test_what_is_no_time_is_refused(written: str) -> None:
    said = "write a number of seconds above 0 and below 1e9, such as 30 or 0.5"
    assert refusal(values.seconds, written) == said


@pytest.mark.parametrize("written", [*NO_NUMBERS, *NO_NUMBERS_EITHER])
def test_what_is_no_time_and_not_zero_is_refused(written: str) -> None:
    said = "write a number of seconds from 0 to below 1e9, such as 30 or 0.5"
    assert refusal(values.seconds_or_zero, written) == said


def test_a_time_may_be_zero_where_that_means_something() -> None:
    assert values.seconds_or_zero(node("0")) == 0


@pytest.mark.parametrize(("written", "number"), [("-2", -2), ("3", 3), ('"0"', 0), ("2.0", 2)])
def test_a_whole_number_lies_within_its_bounds(written: str, number: int) -> None:
    found = values.integer(-2, 3)(node(written))
    assert (found, type(found)) == (number, int)


@pytest.mark.parametrize("written", [*NO_NUMBERS[:-3], "1.5", "-3", "4", *NO_NUMBERS_EITHER])
def test_what_is_no_whole_number_within_its_bounds_is_refused(written: str) -> None:
    assert refusal(values.integer(-2, 3), written) == "write a whole number from -2 to 3"


# --- everything else -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "switch"),
    [("true", True), ("Yes", True), ("ON", True), ("false", False), ("no", False), ("Off", False)],
)
def test_a_switch_is_on_or_off(written: str, switch: bool) -> None:
    assert values.boolean(node(written)) is switch


@pytest.mark.parametrize("written", ['"no"', "1", "0", "y", "maybe", "[true]", "!!bool maybe"])
def test_a_switch_has_no_third_position(written: str) -> None:
    assert refusal(values.boolean, written) == "write true or false, without quotes"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("quene", "did you mean queue? write one of skip, queue, cancel"),
        ("SKIP", "did you mean skip? write one of skip, queue, cancel"),
        ("later", "write one of skip, queue, cancel"),
        ("no", "YAML reads that as true or false: put it in quotes"),
        ("[skip]", "write a text, in quotes if it begins with a bracket"),
    ],
)
def test_what_is_not_among_the_choices_is_refused(written: str, said: str) -> None:
    assert refusal(values.choice(("skip", "queue", "cancel")), written) == said


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("scripts", Path("/srv/hooks/scripts")),
        ("./a b", Path("/srv/hooks/a b")),
        ("/opt", Path("/opt")),
        ("~/scripts", Path.home() / "scripts"),
        ('"~"', Path.home()),
    ],
)
def test_a_directory_is_relative_to_the_file(written: str, path: Path) -> None:
    assert values.directory(Path("/srv/hooks"))(node(written)) == path


def test_a_directory_is_absolute_whatever_it_is_relative_to() -> None:
    assert values.directory(Path("hooks"))(node("a")) == Path.cwd() / "hooks" / "a"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("~nobody-of-this-name/x", "nobody knows where this home is: write the whole path"),
        ('""', "write something"),
        ("5", NUMBER),
    ],
)
def test_what_is_no_directory_is_refused(written: str, said: str) -> None:
    assert refusal(values.directory(Path("/srv")), written) == said


@pytest.mark.parametrize("name", ["A", "_", "a_1", "PATH"])
def test_a_variable_has_a_name_and_a_value(name: str) -> None:
    assert values.variable(name, node("1.50")) == "1.50"


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "Ä", "A=B", "A\n", ""])
def test_what_no_shell_can_name_is_no_variable(name: str) -> None:
    said = "write a name of letters, digits and _ that does not begin with a digit"
    assert refusal(lambda value: values.variable(name, value), "x") == said


def test_a_variable_that_would_be_cut_off_is_refused() -> None:
    assert values.variable("A", node("x" * 32 * 1024)) == "x" * 32 * 1024
    assert refusal(lambda value: values.variable("A", value), "é" * 17 * 1024) == (
        "write at most 32 KiB"
    )


# --- how a value is named ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("5m", "5m"),
        ('"no"', '"no"'),
        ("'5'", '"5"'),
        ('""', "empty"),
        ("", "empty"),
        ("[a]", "a list"),
        ("{a}", "a mapping"),
        ("!!set {a}", "tagged !!set"),
        ("!env a", "tagged !env"),
        ("|\n  a\n  b\n", "'a\\nb\\n'"),
        ('"\\e[31m"', "'\\x1b[31m'"),
        ("x" * 100, "x" * 59 + "…"),
    ],
)
def test_a_value_is_named_as_it_is_written(written: str, shown: str) -> None:
    assert values.describe(node(written)) == shown


@given(st.text())
def test_an_excerpt_is_short_and_printable_on_one_line(text: str) -> None:
    found = values.excerpt(text)
    assert found.isprintable()
    assert len(found) <= 60 * len("\\U0001f600") + len("''")
