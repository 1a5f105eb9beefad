from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from clarad.automation.config import entries, values
from clarad.automation.config.entries import Entry, Kind, Loaded, Problem

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

Said = list[tuple[int | None, str]]


class Pet(Struct, frozen=True):
    """What these tests keep in a file."""

    name: str
    type: str
    foods: tuple[str, ...]
    age: float
    tricks: dict[str, str]


KIND: Final = Kind("pet", ("name", "type", "food", "age", "tricks"))


def pet(entry: Entry) -> Pet:
    kind = entry.get_type(("cat", "dog"), default="cat")
    if kind is not None:
        entry.check_type(kind, {"tricks": ("dog",)})
    return Pet(
        name=entry.name,
        type=kind or "cat",
        foods=tuple(entry.get_list("food", values.text, example="fish")),
        age=entry.get("age", 1, values.seconds),
        tricks=entry.get_mapping(
            "tricks", lambda _, node: values.scalar(node), example="sit: down"
        ),
    )


Load = Callable[[str], Loaded[Pet]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a file and load it."""

    def run(text: str) -> Loaded[Pet]:
        path = tmp_path / "pets.yaml"
        path.write_text(text)
        return entries.load(path, KIND, pet)

    return run


def said(loaded: Loaded[Pet]) -> Said:
    return [(problem.line, problem.text) for problem in loaded.problems]


def names(loaded: Loaded[Pet]) -> list[str]:
    return [each.name for each in loaded.entries]


# --- good files ----------------------------------------------------------------------------------


def test_the_entries_are_those_of_the_file_in_their_order(load: Load) -> None:
    loaded = load(
        """
pets:
  - name: Tom
    food: [fish, "2"]
  - {name: Rex, type: dog, food: meat, age: 3, tricks: {sit: down, count: 5}}
"""
    )
    assert loaded.problems == []
    assert loaded.entries == [
        Pet("Tom", "cat", ("fish", "2"), 1, {}),
        Pet("Rex", "dog", ("meat",), 3, {"sit": "down", "count": "5"}),
    ]


@pytest.mark.parametrize("text", ["", "# none\n", "pets:\n", "pets: []\n", "pets: ~\n", "{}", "~"])
def test_a_file_may_have_no_entries(load: Load, text: str) -> None:
    assert load(text) == Loaded([], [])


def test_a_file_that_is_not_there_has_no_entries(tmp_path: Path) -> None:
    assert entries.load(tmp_path / "nowhere" / "pets.yaml", KIND, pet) == Loaded([], [])


def test_a_key_with_nothing_after_it_counts_as_not_there(load: Load) -> None:
    loaded = load("pets:\n  - name: Tom\n    food: fish\n    age:\n    type: ~\n    tricks:\n")
    assert loaded == Loaded([Pet("Tom", "cat", ("fish",), 1, {})], [])


def test_an_alias_is_what_it_names(load: Load) -> None:
    loaded = load(
        """
pets:
  - name: Tom
    food: &food [fish]
  - name: Kit
    food: *food
"""
    )
    assert loaded.problems == []
    assert [each.foods for each in loaded.entries] == [("fish",), ("fish",)]


def test_a_mapping_is_merged_below_what_is_written(load: Load) -> None:
    loaded = load(
        """
pets:
  - &old
    name: Tom
    food: fish
    age: 20
  - &dog
    name: Rex
    type: dog
    food: meat
  - <<: *dog
    name: Max
    age: 2
  - <<: [*dog, *old]
    name: Joe
"""
    )
    assert loaded.problems == []
    assert loaded.entries[2:] == [
        Pet("Max", "dog", ("meat",), 2, {}),
        Pet("Joe", "dog", ("meat",), 20, {}),
    ]


# --- problems ------------------------------------------------------------------------------------


def test_a_problem_is_one_line_with_its_place() -> None:
    assert f"{Problem(Path('hooks/hooks.yaml'), 12, 'a fix')}" == "hooks/hooks.yaml:12: a fix"
    assert f"{Problem(Path('hooks/hooks.yaml'), None, 'a fix')}" == "hooks/hooks.yaml: a fix"


def test_problems_are_those_of_the_file(load: Load, tmp_path: Path) -> None:
    [problem] = load("pets: 5").problems
    assert problem.path == tmp_path / "pets.yaml"


WRONG_FILES: Final = {
    "a list": (
        "- name: Tom\n",
        [(1, "the file is a list; write pets: and below it a list of pets")],
    ),
    "a word": (
        "pets\n",
        [(1, "the file is pets; write pets: and below it a list of pets")],
    ),
    "a tag": (
        "!!python/object:os.system\npets: []\n",
        [
            (
                1,
                "the file is tagged !!python/object:os.system; write pets: and below it a list of "
                "pets",
            )
        ],
    ),
    "no pets": (
        "# nothing\nversion: 1\nusers: []\n",
        [
            (
                2,
                "the file has no pets:, only version, users; "
                "write pets: and below it a list of pets",
            )
        ],
    ),
    "misspelled pets": (
        "pet:\n  - name: Tom\n",
        [(1, "pet means nothing here; did you mean pets?")],
    ),
    "misspelled pets beside something else": (
        "version: 1\nPets: []\n",
        [
            (1, "version means nothing here; take it out"),
            (2, "Pets means nothing here; did you mean pets?"),
        ],
    ),
    "something else beside pets": (
        "pets: []\nversion: 1\npet: []\n",
        [
            (2, "version means nothing here; take it out"),
            (3, "pet means nothing here; take it out"),
        ],
    ),
    "pets twice": (
        "pets: []\nother: 1\npets: []\n",
        [
            (2, "other means nothing here; take it out"),
            (3, "pets is here twice, first on line 1: take one of them out"),
        ],
    ),
    "pets by their names": (
        "pets:\n  Tom:\n    food: fish\n",
        [(2, "pets is a mapping; write pets: and below it a list of pets, each after a dash")],
    ),
    "a number of pets": (
        "pets: 5\n",
        [(1, "pets is 5; write pets: and below it a list of pets, each after a dash")],
    ),
    "pets that are words": (
        "pets:\n  - Tom\n  -\n  - [Kit]\n  - !!python/object:os.system {}\n",
        [
            (2, "this pet is Tom; write its keys after the dash, such as - name: backup"),
            (3, "this pet is empty; write its keys after the dash, such as - name: backup"),
            (4, "this pet is a list; write its keys after the dash, such as - name: backup"),
            (
                5,
                "this pet is tagged !!python/object:os.system; write its keys after the dash, such "
                "as - name: backup",
            ),
        ],
    ),
    "what is not YAML": (
        "pets:\n  - name: @Tom\n",
        [(2, "a value cannot begin with @: put it in quotes")],
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_file_that_is_wrong_is_refused_with_its_fix(load: Load, wrong: str) -> None:
    text, expected = WRONG_FILES[wrong]
    loaded = load(text)
    assert said(loaded) == expected
    assert loaded.entries == []


WRONG_ENTRIES: Final[dict[str, tuple[str, Said]]] = {
    "without a name": (
        "food: fish",
        [(3, "this pet has no name; add it, such as name: backup")],
    ),
    "with an empty name": (
        "name:\nfood: fish",
        [(3, "this pet has no name; add it, such as name: backup")],
    ),
    "with a number for a name": (
        "food: fish\nname: 5",
        [(4, "name is 5; YAML reads that as a number: put it in quotes")],
    ),
    "with a misspelled name": (
        "nmae: Tom\nfood: fish",
        [(3, "nmae is not a key of a pet; did you mean name?")],
    ),
    "without what it needs": (
        "name: Tom",
        [(3, "this pet has no food; add it, such as food: fish")],
    ),
    "with nothing of what it needs": (
        "name: Tom\nfood:",
        [(4, "this pet has no food; add it, such as food: fish")],
    ),
    "with an empty list of what it needs": (
        "name: Tom\nfood: []",
        [(4, "food is an empty list; write one or more, such as fish")],
    ),
    "with something wrong in a list": (
        "name: Tom\nfood:\n- fish\n- 5\n- [meat]",
        [
            (6, "food is 5; YAML reads that as a number: put it in quotes"),
            (7, "food is a list; write a text, in quotes if it begins with a bracket"),
        ],
    ),
    "with a mapping instead of a list": (
        "name: Tom\nfood: {fish: yes}",
        [(4, "food is a mapping; write a text, in quotes if it begins with a bracket")],
    ),
    "with a list that is tagged": (
        "name: Tom\nfood: !!python/tuple [fish]",
        [(4, "food is tagged !!python/tuple; take the tag !!python/tuple out")],
    ),
    "with a misspelled key": (
        "name: Tom\nfood: fish\nagee: 5",
        [(5, "agee is not a key of a pet; did you mean age?")],
    ),
    "with a key that nobody knows": (
        "name: Tom\nfood: fish\ncolour:\n  - grey",
        [(5, "colour is not a key of a pet; write one of name, type, food, age, tricks")],
    ),
    "with a key twice": (
        "name: Tom\nfood: fish\nage: 5\nage: 6",
        [(6, "age is here twice, first on line 5: take one of them out")],
    ),
    "with a list for a key": (
        "name: Tom\nfood: fish\n? [age]\n: 5",
        [(5, "a key is a list; write a word")],
    ),
    "with an empty key": (
        'name: Tom\nfood: fish\n"": 5',
        [(5, "a key is empty; write a word")],
    ),
    "with a tagged key": (
        "name: Tom\nfood: fish\n!!python/name:os.system age: 5",
        [(5, "a key is tagged !!python/name:os.system; write a word")],
    ),
    "with a value of the wrong kind": (
        "name: Tom\nfood: fish\nage: [5]",
        [(5, "age is a list; write a number of seconds above 0 and below 1e9, such as 30 or 0.5")],
    ),
    "with a type that does not exist": (
        "name: Tom\nfood: fish\ntype: dgo\ntricks: {sit: down}",
        [(5, "type is dgo; did you mean dog? write one of cat, dog")],
    ),
    "with what only another type has": (
        "name: Tom\nfood: fish\ntype: cat\ntricks: {sit: down}",
        [
            (
                6,
                "tricks is for type: dog, and this pet has type: cat; change the type, or take "
                "tricks out",
            )
        ],
    ),
    "with what its type by default does not have": (
        "name: Tom\nfood: fish\ntricks: {sit: down}",
        [
            (
                5,
                "tricks is for type: dog, and this pet has type: cat, as it names none; change the "
                "type, or take tricks out",
            )
        ],
    ),
    "with a list instead of a mapping": (
        "name: Rex\nfood: meat\ntype: dog\ntricks: [sit]",
        [(6, "tricks is a list; write a mapping, such as sit: down")],
    ),
    "with a mapping that is wrong": (
        "name: Rex\nfood: meat\ntype: dog\ntricks:\n  sit: [down]\n  count:\n  sit: up",
        [
            (7, "tricks: sit is not right; write a text"),
            (8, 'tricks: count is not right; write a value, or "" for an empty one'),
            (9, "sit is here twice, first on line 7: take one of them out"),
        ],
    ),
    "with a merge of nothing": (
        "name: Tom\nfood: fish\n<<: age",
        [(5, "<< is age; write an alias of a mapping")],
    ),
    "with everything at once": (
        "name: 5\nfodo: fish\nage: -1\ntype: cow",
        [
            (3, "name is 5; YAML reads that as a number: put it in quotes"),
            (4, "fodo is not a key of a pet; did you mean food?"),
            (5, "age is -1; write a number of seconds above 0 and below 1e9, such as 30 or 0.5"),
            (6, "type is cow; write one of cat, dog"),
        ],
    ),
}


def indented(entry: str) -> str:
    return "pets:\n  -\n" + "".join(f"    {line}\n" for line in entry.splitlines())


@pytest.mark.parametrize("wrong", WRONG_ENTRIES)
def test_an_entry_that_is_wrong_is_refused_with_its_fix(load: Load, wrong: str) -> None:
    entry, expected = WRONG_ENTRIES[wrong]
    loaded = load(indented(entry))
    assert said(loaded) == expected
    assert loaded.entries == []


def test_two_entries_of_one_name_are_both_named_and_the_first_counts(load: Load) -> None:
    loaded = load(
        """pets:
  - name: Tom
    food: fish
  - food: meat
    name: Tom
  - {name: Tom, food: milk}
"""
    )
    assert loaded.entries == [Pet("Tom", "cat", ("fish",), 1, {})]
    assert said(loaded) == [
        (5, "another pet is called Tom, on line 2; rename one of them"),
        (6, "another pet is called Tom, on line 2; rename one of them"),
    ]


def test_an_alias_of_an_entry_has_its_name(load: Load) -> None:
    loaded = load("pets:\n  - &tom\n    name: Tom\n    food: fish\n  - *tom\n")
    assert names(loaded) == ["Tom"]
    assert said(loaded) == [(3, "another pet is called Tom, on line 3; rename one of them")]


def test_entries_without_names_are_not_of_one_name(load: Load) -> None:
    loaded = load("pets:\n  - food: fish\n  - food: meat\n")
    assert [line for line, _ in said(loaded)] == [2, 3]


@pytest.mark.parametrize("wrong", WRONG_ENTRIES)
def test_good_entries_survive_a_bad_neighbour(load: Load, wrong: str) -> None:
    bad = indented(WRONG_ENTRIES[wrong][0])
    after = "  - {name: Kit, food: milk}\n  - {name: Max, food: meat, type: dog, tricks: {}}\n"
    loaded = load(bad + after)
    assert names(loaded) == ["Kit", "Max"]
    assert said(loaded) == WRONG_ENTRIES[wrong][1]


def test_what_is_merged_into_several_entries_is_wrong_once(load: Load) -> None:
    loaded = load(
        """pets:
  - &old
    name: Tom
    food: fish
    age: very
  - {<<: *old, name: Kit}
  - {<<: *old, name: Joe, age: 20}
"""
    )
    assert names(loaded) == ["Joe"]
    assert [line for line, _ in said(loaded)] == [5]


def test_problems_are_sorted_by_their_lines(load: Load) -> None:
    loaded = load("pets:\n  - agee: 5\n    food: 6\n    name: Tom\n  - 5\nother: 1\npets: 2\n")
    assert [line for line, _ in said(loaded)] == [2, 3, 5, 6, 7]


def test_a_mapping_that_merges_itself_is_refused(load: Load) -> None:
    loaded = load("pets:\n  - &tom\n    name: Tom\n    food: fish\n    <<: *tom\n")
    assert said(loaded) == [(5, "<< merges the mapping into itself: take it out")]
    assert loaded.entries == []


# --- whatever is written -------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes()
    | st.dates()
)
keys = st.sampled_from(["pets", *KIND.keys]) | scalars
structures = st.recursive(
    scalars, lambda below: st.lists(below) | st.dictionaries(keys, below), max_leaves=10
)
pets = st.lists(st.dictionaries(st.sampled_from(KIND.keys) | st.text(), structures) | structures)


@relaxed
@given(structures | pets.map(lambda pets: {"pets": pets}))
def test_whatever_is_in_a_file_it_is_read_or_refused(load: Load, structure: Any) -> None:
    loaded = load(yaml.safe_dump(structure))
    assert all(f"{problem}".isprintable() for problem in loaded.problems)
    assert len(set(names(loaded))) == len(loaded.entries)


@relaxed
@given(
    st.lists(st.sampled_from(["pets:", "- ", "name: ", "food", "&a ", "*a", "<<: ", "\n", "  "]))
)
def test_whatever_looks_like_a_file_is_read_or_refused(load: Load, words: list[str]) -> None:
    loaded = load("".join(words))
    assert all(problem.text for problem in loaded.problems)
