"""The frames of the control socket: what is read, what is refused, and what is written."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from clarad import protocol
from clarad.protocol import ErrorCode, control, encode
from clarad.protocol.control import decode, decode_answer

relaxed = settings(deadline=None)

ids = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=255
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
requests = st.one_of(
    st.builds(control.Reload, id=ids),
    st.builds(control.Status, id=ids),
    st.builds(control.RunTask, id=ids, task=ids, caused_by=st.lists(ids, max_size=3)),
    st.builds(control.PauseTask, id=ids, task=ids),
    st.builds(control.ResumeTask, id=ids, task=ids),
    st.builds(control.ReplayRun, id=ids, run=ids),
    st.builds(control.SandboxStatus, id=ids),
    st.builds(
        control.SandboxExec,
        id=ids,
        owner=ids,
        argv=st.lists(words, min_size=1, max_size=3),
    ),
    st.builds(control.SandboxReset, id=ids, owner=ids),
    st.builds(control.SandboxPrune, id=ids),
)
answers = st.one_of(
    st.builds(control.Started, id=ids, run=ids),
    st.builds(control.Output, id=ids, stream=st.sampled_from(["stdout", "stderr"]), text=texts),
    st.builds(control.Done, id=ids, text=ids, run=st.none() | ids, outcome=st.none() | ids),
    st.builds(control.Done, id=ids, text=ids, exit_status=st.none() | st.integers(-64, 255)),
    st.builds(
        control.Done,
        id=ids,
        text=ids,
        rows=st.lists(st.dictionaries(texts, st.none() | st.booleans() | texts, max_size=3)),
    ),
    st.builds(control.Refusal, id=ids, problems=st.lists(ids)),
    st.builds(
        protocol.Error, code=st.sampled_from(ErrorCode), message=ids, recoverable=st.booleans()
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KINDS = [
    "reload", "status", "run_task", "pause_task", "resume_task", "replay_run",
    "sandbox_status", "sandbox_exec", "sandbox_reset", "sandbox_prune",
]  # fmt: skip
almost_requests = st.dictionaries(
    st.sampled_from(["id", "task", "run", "caused_by", "owner", "argv", "x"]), json_values
).flatmap(
    lambda frame: st.sampled_from([*KINDS, "ping", 7, None]).map(
        lambda kind: {"type": kind, **frame}
    )
)


def error_of(text: str) -> protocol.Error | None:
    """Return the answer to what is no request."""
    try:
        decode(text)
    except protocol.Refused as refused:
        return refused.error
    return None


@relaxed
@given(requests)
def test_a_request_arrives_as_it_was_sent(request: control.Request) -> None:
    assert decode(encode(request).decode()) == request


@relaxed
@given(answers)
def test_an_answer_arrives_as_it_was_sent(answer: control.Answer) -> None:
    assert decode_answer(encode(answer).decode()) == answer


def test_what_there_is_not_is_not_written() -> None:
    assert json.loads(encode(control.Done("1", "done"))) == {
        "type": "done",
        "id": "1",
        "text": "done",
    }


def test_a_run_by_hand_has_no_causes() -> None:
    assert decode('{"type":"run_task","id":"1","task":"t"}') == control.RunTask("1", "t", [])


def test_fields_that_are_not_listed_are_ignored() -> None:
    assert decode('{"type":"reload","id":"1","new":[1,{"deep":2}]}') == control.Reload("1")


# --- what is refused -----------------------------------------------------------------------------


@relaxed
@given(st.text() | json_values.map(json.dumps) | almost_requests.map(json.dumps))
def test_any_text_is_a_request_or_is_refused_with_what_to_do(text: str) -> None:
    error = error_of(text)
    if error is not None:
        assert error.message.endswith(".")
        assert encode(error)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ErrorCode.INVALID_JSON),
        ("{", ErrorCode.INVALID_JSON),
        ("reload", ErrorCode.INVALID_JSON),
        ('{"type":"reload","id":"1","x":' + DEEP + "}", ErrorCode.INVALID_JSON),
        ('{"type":"reload","id":"\\ud800"}', ErrorCode.INVALID_JSON),
        ("\ud800", ErrorCode.INVALID_JSON),
        ("[]", ErrorCode.INVALID_MESSAGE),
        ("null", ErrorCode.INVALID_MESSAGE),
        ("{}", ErrorCode.INVALID_MESSAGE),
        ('{"type":["reload"]}', ErrorCode.INVALID_MESSAGE),
        ('{"type":"reload"}', ErrorCode.INVALID_MESSAGE),
        ('{"type":"reload","id":1e999}', ErrorCode.INVALID_MESSAGE),
        ('{"type":"reload","id":7}', ErrorCode.INVALID_MESSAGE),
        ('{"type":"reload","id":""}', ErrorCode.INVALID_MESSAGE),
        ('{"type":"ping"}', ErrorCode.UNKNOWN_TYPE),
        ('{"type":"done","id":"1","text":""}', ErrorCode.UNKNOWN_TYPE),
    ],
    ids=lambda value: str(value.encode(errors="replace"))[:24],
)
def test_what_is_no_request_is_refused_with_the_gateway_s_codes(text: str, code: ErrorCode) -> None:
    error = error_of(text)
    assert error is not None
    assert error.code is code


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("run_task", {}, "task"),
        ("run_task", {"task": ""}, "task"),
        ("run_task", {"task": "x" * 256}, "task"),
        ("run_task", {"task": "t", "caused_by": "r"}, "caused_by"),
        ("run_task", {"task": "t", "caused_by": [7]}, "caused_by"),
        ("run_task", {"task": "t", "caused_by": ["r"] * 65}, "caused_by"),
        ("pause_task", {"task": None}, "task"),
        ("resume_task", {"task": "nul \0"}, "task"),
        ("replay_run", {}, "run"),
        ("sandbox_exec", {"argv": ["ls"]}, "owner"),
        ("sandbox_exec", {"owner": "u"}, "argv"),
        ("sandbox_exec", {"owner": "u", "argv": []}, "argv"),
        ("sandbox_exec", {"owner": "u", "argv": "ls"}, "argv"),
        ("sandbox_exec", {"owner": "u", "argv": ["ls", 7]}, "argv"),
        ("sandbox_exec", {"owner": "u", "argv": ["ls", "nul \0"]}, "argv"),
        ("sandbox_exec", {"owner": "u", "argv": [""] * 4097}, "argv"),
        ("sandbox_exec", {"owner": "u" * 256, "argv": ["ls"]}, "owner"),
        ("sandbox_reset", {}, "owner"),
        ("sandbox_reset", {"owner": ""}, "owner"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_the_frame_s_id(
    kind: str, fields: dict[str, Any], named: str
) -> None:
    error = error_of(json.dumps({"type": kind, "id": "r1", **fields}))
    assert error is not None
    assert error.code is ErrorCode.INVALID_MESSAGE
    assert error.request_id == "r1"
    assert named in error.message


@pytest.mark.parametrize("unreadable", [7, None, "", "x" * 256, ["r1"]])
def test_an_id_that_cannot_be_read_does_not_come_back(unreadable: Any) -> None:
    error = error_of(json.dumps({"type": "pause_task", "id": unreadable}))
    assert error is not None
    assert error.request_id is UNSET


def test_the_answer_to_megabytes_is_short() -> None:
    for frame in ({"type": "x" * 2**20, "id": "1"}, {"type": "reload", "id": "x" * 2**20}):
        error = error_of(json.dumps(frame))
        assert error is not None
        assert len(encode(error)) < 1000


def test_a_refusal_says_every_problem_to_a_person() -> None:
    assert str(control.Refused(["one", "two"])) == "one; two"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "removed 0 sandboxes"), (1, "removed 1 sandbox"), (2, "removed 2 sandboxes")],
)
def test_how_many_sandboxes_were_removed_is_said(number: int, said: str) -> None:
    assert control.pruned(number) == f"{said} that had been left behind"
