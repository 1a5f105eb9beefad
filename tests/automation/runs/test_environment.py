import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.runs import environment
from clarad.events import Event, EventType
from clarad.process import shell

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
a_few = settings(relaxed, max_examples=settings().max_examples // 4)
"""Each example starts a process."""

PATIENCE: Final = 10.0
"""Seconds after which a test that hangs is given up; nothing here takes that long."""

NASTY: Final = [
    '"; touch escaped #',
    "$(touch escaped)",
    "`touch escaped`",
    "'; touch escaped; '",
    "a\nCLARA_RUN=forged\nb",
    "${CLARA_RUN}",
    "a\\",
    "-n",
    "%s%n",
    "*",
    "  two  spaces  ",
    "",
    "é\N{PILE OF POO}\u202e",
]


def event(**fields: Any) -> Event:
    usual: dict[str, Any] = {
        "id": "event-1",
        "type": EventType.TOOL_ERROR,
        "timestamp": datetime(2027, 1, 1, 12, 30, tzinfo=UTC),
    }
    return Event(**usual | fields)


async def run(command: str, variables: dict[str, str]) -> bytes:
    """Return what a command prints that has these variables, as hooks and tasks start it."""
    printed = bytearray()
    with trio.fail_after(PATIENCE):
        result = await shell.run(
            command, env=shell.environment(variables), on_stdout=printed.extend
        )
    assert result.exit_status == 0, result.stderr
    return bytes(printed)


async def arrived(variables: dict[str, str]) -> dict[str, str]:
    """Return what a command is told by clarad, as it arrives there."""
    words = (await run("env -0", variables)).decode().split("\0")
    found = dict(word.split("=", 1) for word in words if word)
    return {name: value for name, value in found.items() if name.startswith("CLARA_")}


def told(**fields: Any) -> dict[str, str]:
    return environment.of_event(event(**fields))


# --- what there is -------------------------------------------------------------------------------


def test_an_event_is_told_in_variables() -> None:
    assert told(
        node_id="node-1",
        platform="discord",
        user_id="user-1",
        channel_id="channel-1",
        request_id="request-1",
        session_id="session-1",
        data={"tool": "hammer", "attempt_of": 2, "share": 0.5, "nested": {"a": [1]}},
    ) == {
        "CLARA_EVENT_ID": "event-1",
        "CLARA_EVENT_TYPE": "tool:error",
        "CLARA_TIMESTAMP": "2027-01-01T12:30:00+00:00",
        "CLARA_NODE_ID": "node-1",
        "CLARA_PLATFORM": "discord",
        "CLARA_USER_ID": "user-1",
        "CLARA_CHANNEL_ID": "channel-1",
        "CLARA_REQUEST_ID": "request-1",
        "CLARA_SESSION_ID": "session-1",
        "CLARA_EVENT_DATA": '{"tool":"hammer","attempt_of":2,"share":0.5,"nested":{"a":[1]}}',
        "CLARA_TOOL": "hammer",
        "CLARA_ATTEMPT_OF": "2",
        "CLARA_SHARE": "0.5",
    }


def test_what_does_not_apply_is_not_set() -> None:
    assert set(told(user_id="user-1")) == {
        "CLARA_EVENT_ID",
        "CLARA_EVENT_TYPE",
        "CLARA_TIMESTAMP",
        "CLARA_USER_ID",
        "CLARA_EVENT_DATA",
    }
    assert told()["CLARA_EVENT_DATA"] == "{}"


def test_a_field_that_is_empty_is_set() -> None:
    assert told(user_id="", data={"reason": ""})["CLARA_USER_ID"] == ""
    assert told(user_id="", data={"reason": ""})["CLARA_REASON"] == ""


def test_each_scalar_of_the_data_has_a_variable_and_nothing_else_has() -> None:
    data = {"text": "a", "whole": -1, "decimal": 1.5, "truth": True}
    others = {"none": None, "list": [1], "mapping": {"a": 1}}
    assert told(data=data | others).keys() - told().keys() == {
        "CLARA_TEXT",
        "CLARA_WHOLE",
        "CLARA_DECIMAL",
        "CLARA_TRUTH",
    }


def test_the_events_own_fields_win_over_its_data() -> None:
    found = told(
        user_id="user-1",
        data={"user_id": "forged", "USER_ID": "forged", "event_type": "forged", "event_data": "{}"},
    )
    assert found["CLARA_USER_ID"] == "user-1"
    assert found["CLARA_EVENT_TYPE"] == "tool:error"
    assert "forged" in found["CLARA_EVENT_DATA"]


def test_a_run_is_told_in_variables() -> None:
    assert environment.of_run("run-3", 2, ["run-1", "run-2"]) == {
        "CLARA_RUN": "run-3",
        "CLARA_ATTEMPT": "2",
        "CLARA_CAUSED_BY": "run-1 run-2 run-3",
    }
    assert environment.of_run("run-1", 1, [])["CLARA_CAUSED_BY"] == "run-1"


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["", "a=b", "a b", "a-b", "a\nb", "a\0b", "a\n", "ä", "a.b", "a$b", "x" * 65, "a=;rm"],
)
def test_what_is_no_name_for_a_variable_is_left_out(key: str) -> None:
    assert told(data={key: "value"}).keys() == told().keys()


def test_a_key_that_begins_with_a_digit_makes_a_name() -> None:
    assert told(data={"2fa": "on"})["CLARA_2FA"] == "on"


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()))
def test_every_name_is_one_that_a_shell_knows(data: dict[str, Any]) -> None:
    assert all(re.fullmatch(r"CLARA_[A-Z0-9_]{1,64}", name) for name in told(data=data))


# --- nothing escapes its variable ----------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(NASTY)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words
keys = st.sampled_from(["tool", "user_id", "run", "path", "ifs"]) | st.text()


@pytest.mark.parametrize("nasty", NASTY)
async def test_a_users_words_arrive_as_one_word(nasty: str) -> None:
    variables = told(user_id=nasty, data={"tool": nasty})
    for name in ("CLARA_USER_ID", "CLARA_TOOL"):
        assert await run(f'printf "%s|" "${{{name}}}" next', variables) == f"{nasty}|next|".encode()


@a_few
@given(st.dictionaries(keys, scalars), words, words)
async def test_a_command_is_told_what_is_meant_for_it_and_nothing_else(
    data: dict[str, Any], user_id: str, channel_id: str
) -> None:
    of_event = told(user_id=user_id, channel_id=channel_id, data=data)
    of_run = environment.of_run("run-1", 1, [])
    found = await arrived(of_event | of_run)
    assert found.pop("CLARA_RUN_ID")
    assert found == {name: value.replace("\0", "") for name, value in (of_event | of_run).items()}
    assert found["CLARA_USER_ID"] == user_id.replace("\0", "")
    assert found["CLARA_RUN"] == "run-1"


@a_few
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), scalars))
async def test_the_data_arrives_as_json(data: dict[str, Any]) -> None:
    found = await arrived(told(data=data))
    assert msgspec.json.decode(found["CLARA_EVENT_DATA"]) == msgspec.json.decode(
        msgspec.json.encode(data)
    )


async def test_half_a_surrogate_pair_arrives_as_a_question_mark() -> None:
    found = await arrived(told(user_id="a\ud800b", data={"tool": "a\ud800b"}))
    assert found["CLARA_USER_ID"] == found["CLARA_TOOL"] == "a?b"


# --- how much ------------------------------------------------------------------------------------

MUCH: Final = 3_000_000

LARGE: Final[dict[str, dict[str, Any]]] = {
    "one long text": {"text": "x" * MUCH},
    "one long text of four bytes each": {"text": "\N{PILE OF POO}" * (MUCH // 4)},
    "long texts": {f"text_{n}": "x" * (MUCH // 30) for n in range(30)},
    "many texts": {f"text_{n}": "x" * 100 for n in range(MUCH // 100)},
    "many short texts": {f"t{n}": "x" for n in range(100_000)},
    "many empty texts with long names": {f"{'n' * 57}{n:07}": "" for n in range(MUCH // 64)},
    "many numbers": {f"number_{n}": n for n in range(100_000)},
    "a long list": {"list": list(range(500_000))},
    "a long name": {"n" * MUCH: "x"},
    "NULs": {"text": "\0" * MUCH},
    "a huge number": {"number": 10**4000},
}


@pytest.mark.parametrize("much", LARGE)
async def test_a_command_starts_however_much_an_event_holds(much: str) -> None:
    data: dict[str, Any] = {"first": "here"} | LARGE[much]
    variables = told(user_id="u" * MUCH, data=data) | environment.of_run("run-1", 1, [])
    assert await run('echo "${CLARA_FIRST} ${CLARA_RUN}"', variables) == b"here run-1\n"


@pytest.mark.parametrize("length", [shell.MAX_VARIABLE + 1, 600_000, MUCH])
async def test_a_variable_that_is_too_long_is_cut_off(length: int) -> None:
    found = await arrived(told(data={"content": "x" * length}))
    assert found["CLARA_CONTENT"] == "x" * shell.MAX_VARIABLE
    assert len(found["CLARA_EVENT_DATA"]) == shell.MAX_VARIABLE


async def test_a_long_variable_leaves_room_for_others() -> None:
    long_texts = {f"long_{n}": "x" * 400_000 for n in range(4)}
    found = await arrived(told(data=long_texts | {"other": "y" * 1000}))
    assert found.keys() >= {"CLARA_LONG_0", "CLARA_LONG_3", "CLARA_OTHER"}


async def test_what_is_cut_off_is_still_text() -> None:
    found = await arrived(told(user_id="\N{EURO SIGN}" * MUCH))
    assert found["CLARA_USER_ID"] == "\N{EURO SIGN}" * (shell.MAX_VARIABLE // 3)
