from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.hooks.matching import Index, matches
from clarad.events import Event, EventType

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

FIELDS: Final = ("node_id", "platform", "user_id", "channel_id", "request_id", "session_id")


def hook(name: str = "hook", *events: EventType, **keys: Any) -> Hook:
    return Hook(
        name=name,
        events=frozenset(events or [EventType.TOOL_ERROR]),
        working_dir=Path("/"),
        **keys,
    )


def event(event_type: EventType = EventType.TOOL_ERROR, **fields: Any) -> Event:
    return Event(
        id="event-1", type=event_type, timestamp=datetime(2027, 1, 1, tzinfo=UTC), **fields
    )


def match(wanted: dict[str, str], **fields: Any) -> bool:
    return matches(hook(match=wanted), event(**fields))


# --- which fields --------------------------------------------------------------------------------


def test_a_hook_that_wants_nothing_matches_everything() -> None:
    assert match({})


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_event_has_to_be_as_it_is_wanted(field: str) -> None:
    assert match({field: "this"}, **{field: "this"})
    assert not match({field: "this"}, **{field: "that"})


def test_a_key_of_the_events_data_has_to_be_as_it_is_wanted() -> None:
    assert match({"tool": "hammer"}, data={"tool": "hammer"})
    assert not match({"tool": "hammer"}, data={"tool": "saw"})


def test_all_of_them_have_to_match() -> None:
    wanted = {"platform": "discord", "tool": "hammer"}
    assert match(wanted, platform="discord", data={"tool": "hammer"})
    assert not match(wanted, platform="discord", data={"tool": "saw"})
    assert not match(wanted, platform="slack", data={"tool": "hammer"})


@pytest.mark.parametrize("wanted", ["*", "", "None", "none", "null"])
def test_a_field_that_is_not_there_matches_nothing(wanted: str) -> None:
    assert not match({"user_id": wanted})
    assert not match({"tool": wanted})
    assert not match({"tool": wanted}, data={"tool": None})


def test_a_field_of_the_event_cannot_be_passed_off_as_another_by_its_data() -> None:
    assert not match({"user_id": "root"}, user_id="guest", data={"user_id": "root"})
    assert match({"user_id": "guest"}, user_id="guest", data={"user_id": "root"})


def test_a_field_that_is_empty_can_be_asked_for() -> None:
    assert match({"reason": ""}, data={"reason": ""})
    assert not match({"reason": ""}, data={"reason": "words"})


# --- globs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "value", "is_match"),
    [
        ("dis*", "discord", True),
        ("*", "anything", True),
        ("*", "", True),
        ("?", "a", True),
        ("?", "ab", False),
        ("[abc]1", "b1", True),
        ("[!abc]1", "b1", False),
        ("disc", "discord", False),
        ("cord", "discord", False),
        ("Discord", "discord", False),
        ("discord", "discord\n", False),
        ("*end", "two\nlines end", True),
        ("a.c", "abc", False),
        ("(a+)+$", "aaaa", False),
    ],
)
def test_a_value_matches_as_file_names_do(wanted: str, value: str, is_match: bool) -> None:
    assert match({"user_id": wanted}, user_id=value) == is_match
    assert match({"key": wanted}, data={"key": value}) == is_match


@pytest.mark.parametrize("name", ["dependabot[bot]", "[x", "a*b?", "[!a]"])
def test_what_is_equal_matches_though_it_looks_like_a_pattern(name: str) -> None:
    assert match({"user_id": name}, user_id=name)


@given(st.text())
@example("dependabot[bot]")
def test_what_is_equal_matches(text: str) -> None:
    assert match({"key": text}, data={"key": text})


@given(st.text(), st.text("*?[]!-ab"))
def test_whatever_is_compared_there_is_an_answer(value: str, wanted: str) -> None:
    assert match({"key": wanted}, data={"key": value}) in (True, False)


def test_a_pattern_that_is_made_to_be_slow_is_not() -> None:
    assert not match({"key": "*a" * 30 + "b"}, data={"key": "a" * 5000})


# --- numbers and truth values --------------------------------------------------------------------


@pytest.fixture
def wanting(tmp_path: Path) -> Callable[[str], Hook]:
    """Load a hook whose `match` is this YAML."""

    def load(text: str) -> Hook:
        (tmp_path / "hooks.yaml").write_text(
            f"hooks: [{{name: a, event: tool:error, command: b, match: {text}}}]"
        )
        loaded = load_hooks(tmp_path)
        assert loaded.problems == []
        return loaded.entries[0]

    return load


@pytest.mark.parametrize(
    ("written", "value", "is_match"),
    [
        ("4008", 4008, True),
        ("4008", "4008", True),
        ('"4008"', 4008, True),
        ("4008", 4009, False),
        ("40*", 4008, True),
        ("-1", -1, True),
        ("0", 0, True),
        ("0.5", 0.5, True),
        ("true", True, True),
        ("True", True, True),
        ("yes", True, True),
        ("false", False, True),
        ("off", False, True),
        ("false", True, False),
        ("true", "true", True),
        ("1", True, False),
        ("0", False, False),
    ],
)
def test_numbers_and_truth_values_are_compared_as_yaml_writes_them(
    wanting: Callable[[str], Hook], written: str, value: object, is_match: bool
) -> None:
    found = matches(wanting(f"{{key: {written}}}"), event(data={"key": value}))
    assert found == is_match


plain = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
decimals = st.integers(-(10**6), 10**6).map(lambda number: number / 100)


@relaxed
@given(st.booleans() | st.integers() | decimals | plain)
def test_a_value_is_matched_by_itself_however_yaml_writes_it(
    wanting: Callable[[str], Hook], value: object
) -> None:
    written = yaml.safe_dump({"key": value}, default_flow_style=True, width=10**9)
    assert matches(wanting(written), event(data={"key": value}))


# --- all hooks -----------------------------------------------------------------------------------


def test_an_event_starts_the_hooks_that_want_its_type() -> None:
    error = hook("error", EventType.TOOL_ERROR)
    both = hook("both", EventType.TOOL_ERROR, EventType.TOOL_END)
    index = Index([error, both, hook("other", EventType.GATEWAY_STARTUP)])
    assert index.matching(event(EventType.TOOL_ERROR)) == [error, both]
    assert index.matching(event(EventType.TOOL_END)) == [both]
    assert index.matching(event(EventType.TOOL_START)) == []


def test_an_event_starts_those_of_the_highest_priority_first() -> None:
    hooks = [hook(f"{n}", priority=priority) for n, priority in enumerate([0, 5, -1, 5, 9])]
    found = Index(hooks).matching(event())
    assert [each.name for each in found] == ["4", "1", "3", "0", "2"]


def test_a_hook_that_is_switched_off_is_not_started() -> None:
    index = Index([hook("off", enabled=False)])
    assert index.matching(event()) == []
    assert index.types == frozenset()


def test_an_event_starts_only_hooks_that_match_it() -> None:
    hooks = [hook(name, match={"platform": name}) for name in ("discord", "slack")]
    found = Index(hooks).matching(event(platform="slack"))
    assert [each.name for each in found] == ["slack"]


def test_it_is_known_which_events_start_nothing() -> None:
    index = Index([hook("a", EventType.TOOL_ERROR), hook("b", EventType.TOOL_END)])
    assert index.types == {EventType.TOOL_ERROR, EventType.TOOL_END}


any_hook = st.builds(
    lambda events, priority, enabled, match: hook(
        "hook", *events, priority=priority, enabled=enabled, match=match
    ),
    st.lists(st.sampled_from(EventType), min_size=1, max_size=3),
    st.integers(-2, 2),
    st.booleans(),
    st.dictionaries(st.sampled_from(["platform", "tool"]), st.sampled_from(["a", "b", "*"])),
)


@given(st.lists(any_hook), st.sampled_from(EventType), st.sampled_from([None, "a", "b"]))
def test_the_index_leaves_nothing_out_and_puts_nothing_in(
    hooks: list[Hook], event_type: EventType, platform: str | None
) -> None:
    one = event(event_type, platform=platform, data={"tool": "a"})
    wanted = [
        each for each in hooks if each.enabled and event_type in each.events and matches(each, one)
    ]
    wanted.sort(key=lambda each: -each.priority)
    assert Index(hooks).matching(one) == wanted
