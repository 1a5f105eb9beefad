import copy
import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from clarad import protocol
from clarad.protocol import ErrorCode, Refused, decode, decode_outbound, encode

Json = dict[str, Any]
Path = tuple[str | int, ...]

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DEEP: Final = 100_000

REGISTER: Final[Json] = {
    "type": "register",
    "node_id": "node",
    "platform": "discord",
    "capabilities": ["streaming"],
    "metadata": {},
}
UNREGISTER: Final[Json] = {"type": "unregister"}
PING: Final[Json] = {"type": "ping"}
MESSAGE: Final[Json] = {
    "type": "message",
    "id": "m-1",
    "user": {"id": "discord-1", "platform_id": "1"},
    "channel": {"id": "c-1", "type": "dm"},
    "content": "hello",
    "attachments": [{"type": "text", "filename": "a.txt"}],
    "reply_chain": [{}],
    "metadata": {},
}
CANCEL: Final[Json] = {"type": "cancel", "request_id": "m-1"}
STATUS: Final[Json] = {"type": "status"}
ACK: Final[Json] = {"type": "ack", "seq": 7}

IDS: Final[list[tuple[Json, Path]]] = [
    (REGISTER, ("node_id",)),
    (REGISTER, ("platform",)),
    (MESSAGE, ("id",)),
    (MESSAGE, ("user", "id")),
    (MESSAGE, ("user", "platform_id")),
    (MESSAGE, ("channel", "id")),
    (CANCEL, ("request_id",)),
]
OPTIONAL: Final[list[tuple[Json, Path]]] = [
    (REGISTER, ("secret",)),
    (REGISTER, ("session_id",)),
    (REGISTER, ("last_seq",)),
    (PING, ("timestamp",)),
    (MESSAGE, ("tier_override",)),
    (MESSAGE, ("user", "name")),
    (MESSAGE, ("user", "display_name")),
    (MESSAGE, ("channel", "name")),
    (MESSAGE, ("channel", "guild_id")),
    (MESSAGE, ("channel", "guild_name")),
    (MESSAGE, ("attachments", 0, "media_type")),
    (MESSAGE, ("attachments", 0, "base64_data")),
    (MESSAGE, ("attachments", 0, "content")),
    (MESSAGE, ("attachments", 0, "size")),
    (CANCEL, ("reason",)),
]
NEEDED: Final[list[tuple[Json, Path]]] = [
    *IDS,
    (MESSAGE, ("user",)),
    (MESSAGE, ("channel",)),
    (MESSAGE, ("content",)),
    (MESSAGE, ("attachments", 0, "type")),
    (MESSAGE, ("attachments", 0, "filename")),
    (ACK, ("seq",)),
]
WRONG: Final[list[tuple[Json, Path, Any]]] = [
    (REGISTER, ("node_id",), 5),
    (REGISTER, ("capabilities",), "streaming"),
    (REGISTER, ("capabilities",), [1]),
    (REGISTER, ("capabilities",), ["x" * 65]),
    (REGISTER, ("capabilities",), ["x"] * 65),
    (CANCEL, ("reason",), "x" * 4097),
    (REGISTER, ("metadata",), []),
    (REGISTER, ("secret",), 1),
    (REGISTER, ("last_seq",), "1"),
    (MESSAGE, ("id",), ["m-1"]),
    (MESSAGE, ("user",), "somebody"),
    (MESSAGE, ("user", "name"), 1),
    (MESSAGE, ("channel", "type"), "forum"),
    (MESSAGE, ("content",), None),
    (MESSAGE, ("attachments",), {}),
    (MESSAGE, ("attachments", 0, "type"), "video"),
    (MESSAGE, ("attachments", 0, "size"), "big"),
    (MESSAGE, ("reply_chain",), ["m-0"]),
    (MESSAGE, ("metadata",), "none"),
    (CANCEL, ("request_id",), None),
    (CANCEL, ("reason",), {}),
    (ACK, ("seq",), 1.5),
    (ACK, ("seq",), True),
]


def having(frame: Json, path: Path, value: Any) -> Json:
    result = copy.deepcopy(frame)
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return result


def lacking(frame: Json, path: Path) -> Json:
    result = having(frame, path, None)
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return result


def read(frame: Json) -> protocol.Inbound:
    return decode(json.dumps(frame))


def refusal(text: str) -> protocol.Error:
    with pytest.raises(Refused) as caught:
        decode(text)
    return caught.value.error


# --- frames that are taken -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (REGISTER, protocol.Register),
        (UNREGISTER, protocol.Unregister),
        (PING, protocol.Ping),
        (MESSAGE, protocol.Message),
        (CANCEL, protocol.Cancel),
        (STATUS, protocol.StatusRequest),
        (ACK, protocol.Ack),
    ],
)
def test_every_type_of_frame_is_known(frame: Json, kind: type[msgspec.Struct]) -> None:
    assert isinstance(read(frame), kind)


@pytest.mark.parametrize(("frame", "path"), OPTIONAL)
def test_an_optional_field_may_be_null(frame: Json, path: Path) -> None:
    assert read(having(frame, path, None)) == read(frame)


def test_the_secret_may_be_empty() -> None:
    assert isinstance(read(REGISTER | {"secret": ""}), protocol.Register)


def test_a_channel_is_a_servers_unless_it_says_otherwise() -> None:
    message = read(lacking(MESSAGE, ("channel", "type")))
    assert isinstance(message, protocol.Message)
    assert message.channel.type == "server"


@pytest.mark.parametrize("timestamp", ["2026-01-01T00:00:00", "yesterday", 1767225600, [], {}])
def test_an_adapters_time_is_not_interpreted(timestamp: object) -> None:
    assert read(PING | {"timestamp": timestamp}) == read(PING)


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        (REGISTER, ("colour",)),
        (UNREGISTER, ("colour",)),
        (PING, ("colour",)),
        (MESSAGE, ("colour",)),
        (MESSAGE, ("user", "colour")),
        (MESSAGE, ("channel", "colour")),
        (MESSAGE, ("attachments", 0, "colour")),
        (CANCEL, ("colour",)),
        (STATUS, ("colour",)),
        (ACK, ("colour",)),
    ],
)
@pytest.mark.parametrize("value", [None, "blue", 1e300, {"deep": [1, {}]}, 10**30])
def test_a_field_that_is_not_listed_is_ignored(frame: Json, path: Path, value: object) -> None:
    assert read(having(frame, path, value)) == read(frame)


def test_the_type_may_come_last() -> None:
    text = json.dumps({"request_id": "m-1", "reason": "enough", "type": "cancel"})
    assert decode(text) == protocol.Cancel(request_id="m-1", reason="enough")


def test_white_space_around_a_frame_is_no_matter() -> None:
    assert decode(' \r\n\t{"type": "ping"}\n') == protocol.Ping()


def test_a_pair_of_surrogate_escapes_is_one_character() -> None:
    frame = decode('{"type": "cancel", "request_id": "\\ud83d\\ude00"}')
    assert frame == protocol.Cancel(request_id="😀")


@pytest.mark.parametrize(("frame", "path"), IDS)
@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_an_id_may_have_255_characters(frame: Json, path: Path, letter: str) -> None:
    read(having(frame, path, letter * 255))


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        (REGISTER, ("metadata", "key")),
        (MESSAGE, ("content",)),
        (MESSAGE, ("metadata", "key")),
        (MESSAGE, ("reply_chain", 0, "key")),
        (CANCEL, ("reason",)),
    ],
)
def test_nul_is_a_character_like_others_outside_of_ids(frame: Json, path: Path) -> None:
    read(having(frame, path, "a\0b"))


# --- frames that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "nul",
        "NaN",
        "hello",
        "{'type': 'ping'}",
        '{"type": "ping"',
        '{"type": "ping",}',
        '{"type": "ping"} {"type": "ping"}',
        '{"type": "ping"}\0',
        '{"type": "ping", "timestamp": 01}',
        '{"type": "ping", "timestamp": NaN}',
        '{"type": "ping", "timestamp": "\\x"}',
        '{"type": "ping", "timestamp": "a\nb"}',
        '{"type": "ping", "timestamp": "a\0b"}',
        '\ufeff{"type": "ping"}',
        "GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_json_is_invalid_json(text: str) -> None:
    assert refusal(text).code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("frame", [REGISTER, MESSAGE, CANCEL, ACK])
def test_a_frame_that_is_cut_off_anywhere_is_invalid_json(frame: Json) -> None:
    text = json.dumps(frame)
    codes = {refusal(text[:length]).code for length in range(len(text))}
    assert codes == {ErrorCode.INVALID_JSON}


def test_what_is_not_json_is_not_blamed_for_the_types_in_it() -> None:
    error = refusal('{"type": "cancel", "request_id": 5,')
    assert error.code is ErrorCode.INVALID_JSON
    assert "Expected" not in error.message


@pytest.mark.parametrize("text", ["null", "true", "5", "0.5", '"ping"', "[]", '["ping"]'])
def test_json_that_is_not_an_object_is_an_invalid_message(text: str) -> None:
    assert refusal(text).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("text", ["{}", '{"id": "m-1"}', '{"Type": "ping"}'])
def test_an_object_without_a_type_is_an_invalid_message(text: str) -> None:
    assert refusal(text).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("value", [None, 5, True, ["ping"], {"ping": "ping"}])
def test_a_type_that_is_not_a_string_is_an_invalid_message(value: object) -> None:
    assert refusal(json.dumps({"type": value})).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("kind", ["mcp_list", "", "PING", "registered", "pong", "ping\0", "😀"])
def test_a_type_that_is_not_listed_is_an_unknown_type(kind: str) -> None:
    assert refusal(json.dumps({"type": kind})).code is ErrorCode.UNKNOWN_TYPE


@pytest.mark.parametrize(
    ("fields", "echoed"),
    [
        ({"request_id": "r"}, "r"),
        ({"id": "i"}, "i"),
        ({"request_id": "r", "id": "i"}, "r"),
        ({"request_id": None, "id": "i"}, "i"),
        ({"request_id": 7, "id": "i"}, "i"),
        ({"request_id": "", "id": "i"}, "i"),
        ({"request_id": "r" * 256, "id": "i"}, "i"),
        ({"request_id": "r" * 255}, "r" * 255),
        ({}, UNSET),
        ({"request_id": [], "id": {}}, UNSET),
    ],
)
def test_an_unknown_type_is_answered_with_the_id_that_the_frame_has(
    fields: Json, echoed: str | msgspec.UnsetType
) -> None:
    error = refusal(json.dumps({"type": "mcp_list", **fields}))
    assert (error.code, error.request_id) == (ErrorCode.UNKNOWN_TYPE, echoed)


def test_an_invalid_message_is_answered_with_its_id() -> None:
    error = refusal(json.dumps(lacking(MESSAGE, ("content",))))
    assert (error.code, error.request_id) == (ErrorCode.INVALID_MESSAGE, "m-1")


@pytest.mark.parametrize(("frame", "path"), NEEDED)
def test_a_frame_that_lacks_a_field_is_an_invalid_message(frame: Json, path: Path) -> None:
    assert refusal(json.dumps(lacking(frame, path))).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(("frame", "path", "value"), WRONG)
def test_a_field_of_the_wrong_type_is_an_invalid_message(
    frame: Json, path: Path, value: object
) -> None:
    assert refusal(json.dumps(having(frame, path, value))).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(("frame", "path"), IDS)
def test_an_empty_id_is_an_invalid_message(frame: Json, path: Path) -> None:
    assert refusal(json.dumps(having(frame, path, ""))).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(("frame", "path"), IDS)
@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_an_id_of_256_characters_is_an_invalid_message(
    frame: Json, path: Path, letter: str
) -> None:
    text = json.dumps(having(frame, path, letter * 256))
    assert refusal(text).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(("frame", "path"), IDS)
@pytest.mark.parametrize("value", ["\0", "a\0", "\0a", "a\0b", "a\0\n", "a\n\0"])
def test_an_id_with_nul_in_it_is_an_invalid_message(frame: Json, path: Path, value: str) -> None:
    assert refusal(json.dumps(having(frame, path, value))).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("surrogates", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud800\\u0041"])
@pytest.mark.parametrize(
    "text",
    [
        '{"type": "%s"}',
        '{"type": "mcp_list", "id": "%s"}',
        '{"type": "cancel", "request_id": "%s"}',
        '{"type": "cancel", "request_id": "m-1", "reason": "%s"}',
        '{"type": "ping", "timestamp": "%s"}',
        '{"type": "ping", "%s": 1}',
        '"%s"',
    ],
)
def test_an_escaped_lone_surrogate_is_refused(text: str, surrogates: str) -> None:
    error = refusal(text % surrogates)
    assert error.code in (ErrorCode.INVALID_JSON, ErrorCode.INVALID_MESSAGE)


@pytest.mark.parametrize(
    "text", ["\ud800", '{"type": "ping", "x": "\udfff"}', '{"type": "\ud800"}']
)
def test_a_lone_surrogate_in_the_text_is_invalid_json(text: str) -> None:
    assert refusal(text).code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '{"type":"ping","x":' + "[" * DEEP + "]" * DEEP + "}",
        '{"type":"mcp_list","x":' + "[" * DEEP + "]" * DEEP + "}",
        '{"type":' + "[" * DEEP + "]" * DEEP + "}",
        '{"type":"register","node_id":"n","platform":"p","metadata":'
        + '{"a":' * DEEP
        + "1"
        + "}" * DEEP
        + "}",
    ],
)
def test_an_object_that_is_nested_too_deeply_is_invalid_json(text: str) -> None:
    assert refusal(text).code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize("text", ["[" * DEEP, "[" * DEEP + "]" * DEEP])
def test_an_array_that_is_nested_too_deeply_is_refused(text: str) -> None:
    error = refusal(text)
    assert error.code in (ErrorCode.INVALID_JSON, ErrorCode.INVALID_MESSAGE)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1e3000000000", "9" * 5000])
def test_a_number_that_nothing_can_hold_is_an_invalid_message(number: str) -> None:
    assert refusal(f'{{"type":"ack","seq":{number}}}').code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(
    "frame",
    [
        having(MESSAGE, ("channel", "type"), "x" * 1_000_000),
        having(MESSAGE, ("attachments", 0, "type"), "x" * 1_000_000),
        {"type": "x" * 1_000_000},
        having(MESSAGE, ("x" * 1_000_000,), 1) | {"content": None},
    ],
)
def test_a_refusal_is_short_however_long_the_frame(frame: Json) -> None:
    assert len(refusal(json.dumps(frame)).message) < 1000


# --- whatever comes ------------------------------------------------------------------------------

ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=255)
any_text = st.text(st.characters())  # lone surrogates too
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=10,
)
KNOWN: Final = ("register", "unregister", "ping", "message", "cancel", "status", "ack")
FIELDS: Final = sorted({str(path[0]) for _, path in [*OPTIONAL, *NEEDED]} | {"capabilities"})
near_misses = st.builds(
    lambda frame, changes: frame | changes,
    st.sampled_from([REGISTER, UNREGISTER, PING, MESSAGE, CANCEL, STATUS, ACK]),
    st.dictionaries(st.sampled_from([*FIELDS, "type"]), st.sampled_from(KNOWN) | any_json),
)


def check_is_answered(text: str) -> None:
    """Either it is a frame, or there is an `error` frame to answer it with."""
    try:
        frame = decode(text)
    except Refused as refused:
        error = refused.error
    else:
        assert isinstance(frame, protocol.Inbound)
        return
    assert decode_outbound(encode(error)) == error
    assert error.message


@relaxed
@given(any_text)
def test_any_text_is_a_frame_or_refused(text: str) -> None:
    check_is_answered(text)


@relaxed
@given(any_json, st.booleans())
def test_any_json_is_a_frame_or_refused(value: object, ascii_only: bool) -> None:
    check_is_answered(json.dumps(value, ensure_ascii=ascii_only))


@relaxed
@given(near_misses, st.booleans())
def test_anything_like_a_frame_is_a_frame_or_refused(frame: Json, ascii_only: bool) -> None:
    check_is_answered(json.dumps(frame, ensure_ascii=ascii_only))


@relaxed
@given(st.text().filter(lambda kind: kind not in KNOWN), ids)
def test_any_type_that_is_not_listed_is_answered_with_its_id(kind: str, request_id: str) -> None:
    error = refusal(json.dumps({"type": kind, "request_id": request_id}))
    assert (error.code, error.request_id) == (ErrorCode.UNKNOWN_TYPE, request_id)


# --- there and back ------------------------------------------------------------------------------

texts = st.text()
counts = st.integers(0, 2**53)
maybe_text = st.none() | texts
json_objects = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
        max_leaves=5,
    ),
    max_size=3,
)
attachments = st.builds(
    protocol.Attachment,
    type=st.sampled_from(["image", "file", "text"]),
    filename=texts,
    media_type=maybe_text,
    base64_data=maybe_text,
    content=maybe_text,
    size=st.none() | st.integers(),
)
seqs = st.integers(0, 2**63 - 1)
inbound: st.SearchStrategy[protocol.Inbound] = st.one_of(
    st.builds(
        protocol.Register,
        node_id=ids,
        platform=ids,
        capabilities=st.lists(texts.map(lambda text: text[:64]), max_size=3),
        metadata=json_objects,
        secret=maybe_text,
        session_id=maybe_text,
        last_seq=st.none() | seqs,
    ),
    st.builds(protocol.Unregister),
    st.builds(protocol.Ping),
    st.builds(
        protocol.Message,
        id=ids,
        user=st.builds(
            protocol.User, id=ids, platform_id=ids, name=maybe_text, display_name=maybe_text
        ),
        channel=st.builds(
            protocol.Channel,
            id=ids,
            type=st.sampled_from(["dm", "server", "group"]),
            name=maybe_text,
            guild_id=maybe_text,
            guild_name=maybe_text,
        ),
        content=texts,
        attachments=st.lists(attachments, max_size=2),
        reply_chain=st.lists(json_objects, max_size=2),
        tier_override=maybe_text,
        metadata=json_objects,
    ),
    st.builds(
        protocol.Cancel, request_id=ids, reason=st.none() | texts.map(lambda text: text[:4096])
    ),
    st.builds(protocol.StatusRequest),
    st.builds(protocol.Ack, seq=seqs),
)
unset = st.just(UNSET)
outbound: st.SearchStrategy[protocol.Outbound] = st.one_of(
    st.builds(
        protocol.Registered,
        node_id=ids,
        session_id=ids,
        server_time=texts,
        adapter_token=texts,
        resumed=st.booleans(),
    ),
    st.builds(protocol.Pong, timestamp=texts),
    st.builds(protocol.Accepted, request_id=ids, duplicate=st.booleans()),
    st.builds(protocol.ResponseStart, id=ids, request_id=ids, model_tier=unset | texts),
    st.builds(protocol.ResponseChunk, id=ids, request_id=ids, chunk=texts),
    st.builds(
        protocol.ToolStart,
        id=ids,
        request_id=ids,
        tool_name=texts,
        step=counts,
        emoji=texts,
        description=unset | texts,
    ),
    st.builds(
        protocol.ToolResult,
        id=ids,
        request_id=ids,
        tool_name=texts,
        success=st.booleans(),
        output_preview=unset | texts,
        duration_ms=unset | counts,
    ),
    st.builds(
        protocol.ResponseEnd,
        id=ids,
        request_id=ids,
        full_text=texts,
        files=st.lists(texts, max_size=2),
        file_data=st.lists(
            st.builds(protocol.FileData, filename=texts, content_base64=texts, media_type=texts),
            max_size=2,
        ),
        tool_count=counts,
        components=st.lists(json_objects, max_size=2),
        tokens_used=unset | counts,
        edit_target=unset | texts,
    ),
    st.builds(
        protocol.Cancelled,
        request_id=ids,
        reason=texts,
        stopped=st.builds(protocol.Stopped, tools=counts, processes=counts, sandbox_execs=counts),
    ),
    st.builds(
        protocol.Error,
        code=st.sampled_from(ErrorCode),
        message=texts,
        recoverable=st.booleans(),
        request_id=unset | ids,
    ),
    st.builds(
        protocol.Status,
        active_requests=counts,
        queue_length=counts,
        uptime_seconds=counts,
        node_id=unset | ids,
        request_id=unset | ids,
    ),
)


@relaxed
@given(inbound)
def test_what_an_adapter_writes_is_what_the_gateway_reads(frame: protocol.Inbound) -> None:
    assert decode(encode(frame).decode()) == frame


@relaxed
@given(inbound)
def test_a_frame_may_be_written_in_ascii(frame: protocol.Inbound) -> None:
    text = json.dumps(json.loads(encode(frame)))
    assert decode(text) == frame


@relaxed
@given(outbound)
def test_what_the_gateway_writes_is_what_an_adapter_reads(frame: protocol.Outbound) -> None:
    assert decode_outbound(encode(frame)) == frame


@relaxed
@given(outbound)
def test_what_the_gateway_writes_is_json_for_everybody(frame: protocol.Outbound) -> None:
    assert json.loads(encode(frame)) == msgspec.to_builtins(frame)


# --- what adapters count on ----------------------------------------------------------------------

# docs/protocol.md, section 3: the fields that are not optional, and those that are.
OUTBOUND: Final[dict[str, tuple[set[str], set[str]]]] = {
    "registered": (
        {"node_id", "session_id", "server_time", "adapter_token", "resumed", "protocol"},
        set(),
    ),
    "pong": ({"timestamp"}, set()),
    "accepted": ({"request_id", "duplicate"}, set()),
    "response_start": ({"id", "request_id"}, {"model_tier"}),
    "response_chunk": ({"id", "request_id", "chunk"}, {"accumulated"}),
    "tool_start": ({"id", "request_id", "tool_name", "step", "emoji"}, {"description"}),
    "tool_result": (
        {"id", "request_id", "tool_name", "success"},
        {"output_preview", "duration_ms"},
    ),
    "response_end": (
        {
            "id",
            "request_id",
            "full_text",
            "files",
            "file_data",
            "tool_count",
            "components",
        },
        {"tokens_used", "edit_target"},
    ),
    "cancelled": ({"request_id", "reason", "stopped"}, set()),
    "error": ({"code", "message", "recoverable"}, {"request_id"}),
    "status": (
        {"active_requests", "queue_length", "uptime_seconds"},
        {"node_id", "request_id"},
    ),
}
BAREST: Final[list[protocol.Outbound]] = [
    protocol.Registered(node_id="n", session_id="s", server_time="t", adapter_token="a"),
    protocol.Pong(timestamp="t"),
    protocol.Accepted(request_id="r", duplicate=False),
    protocol.ResponseStart(id="i", request_id="r"),
    protocol.ResponseChunk(id="i", request_id="r", chunk=""),
    protocol.ToolStart(id="i", request_id="r", tool_name="t", step=1, emoji="🔧"),
    protocol.ToolResult(id="i", request_id="r", tool_name="t", success=True),
    protocol.ResponseEnd(id="i", request_id="r", full_text=""),
    protocol.Cancelled(request_id="r", reason="", stopped=protocol.Stopped()),
    protocol.Error(code=ErrorCode.TIMEOUT, message="", recoverable=True),
    protocol.Status(active_requests=0, queue_length=0, uptime_seconds=0),
]


@pytest.mark.parametrize("frame", BAREST)
def test_a_frame_with_nothing_to_say_has_the_fields_that_adapters_read_and_no_others(
    frame: protocol.Outbound,
) -> None:
    written = json.loads(encode(frame))
    always, _ = OUTBOUND[written.pop("type")]
    assert set(written) == always


@relaxed
@given(outbound)
def test_no_frame_lacks_a_field_that_adapters_read_or_has_one_that_is_not_listed(
    frame: protocol.Outbound,
) -> None:
    written = json.loads(encode(frame))
    always, sometimes = OUTBOUND[written.pop("type")]
    assert always <= set(written) <= always | sometimes


@relaxed
@given(outbound)
def test_an_optional_field_is_never_written_as_null(frame: protocol.Outbound) -> None:
    assert None not in json.loads(encode(frame)).values()


def test_every_type_that_the_gateway_sends_is_listed() -> None:
    assert {json.loads(encode(frame))["type"] for frame in BAREST} == set(OUTBOUND)


def test_a_cancelled_frame_counts_all_that_was_stopped() -> None:
    frame = protocol.Cancelled(request_id="r", reason="enough", stopped=protocol.Stopped())
    assert json.loads(encode(frame))["stopped"] == {"tools": 0, "processes": 0, "sandbox_execs": 0}


def test_registered_says_which_protocol_this_is() -> None:
    assert json.loads(encode(BAREST[0]))["protocol"] == 1


def test_the_error_codes_are_a_closed_list() -> None:
    listed = (
        "invalid_json invalid_message unknown_type not_registered already_registered auth_failed "
        "too_large rate_limited queue_full not_found timeout interrupted processing_error "
        "no_sandbox shutting_down"
    )
    assert set(ErrorCode) == set(listed.split())


def test_the_close_codes_are_a_closed_list() -> None:
    assert set(protocol.CloseCode) == {1000, 1001, 1008, 1009, 1013, 4000, 4001, 4008}
