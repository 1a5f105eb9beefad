"""Conformance tests for a gateway: a check for each promise that can be seen from outside.

The checks do not depend on what the gateway answers to messages, only that it answers.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from clarad.adapters.websocket import Lost
from clarad.conformance.report import Broken, Verdict
from clarad.conformance.wire import Frame, Kit, fresh

RESUME: Final = ("accepted", "resume", "streaming")


async def check(kit: Kit) -> list[Verdict]:
    """Check one promise after another.

    Raises:
        Lost: nothing answers at the gateway's address.
    """
    async with kit.connection():
        pass
    verdicts = []
    for section, promise in PROMISES:
        text = (promise.__doc__ or "").partition("\n")[0]
        try:
            await promise(kit)
        except (Broken, Lost) as broken:
            verdicts.append(Verdict(section, text, f"{broken}"))
        else:
            verdicts.append(Verdict(section, text))
    return verdicts


# --- frames --------------------------------------------------------------------------------------


async def registered_is_whole(kit: Kit) -> None:
    """`registered` has every field that it is to have."""
    async with kit.node(fresh()) as wire:
        for field, kind in {
            "session_id": str,
            "server_time": str,
            "adapter_token": str,
            "resumed": bool,
            "protocol": int,
        }.items():
            _require(isinstance(wire.registered.get(field), kind), f"{field} is missing or wrong")


async def register_comes_first(kit: Kit) -> None:
    """Nothing but `register` is understood before it."""
    async with kit.connection() as wire:
        await wire.send("ping")
        await wire.expect("error", code="not_registered")


async def register_comes_once(kit: Kit) -> None:
    """A second `register` on a connection is refused, and the first stays."""
    async with kit.node(fresh()) as wire:
        await wire.send("register", node_id=fresh(), platform="other")
        await wire.expect("error", code="already_registered")
        _require(not await wire.rest(), "more came than the refusal")


async def junk_is_refused(kit: Kit) -> None:
    """What is not JSON, or not a frame, is answered with an `error`, and the connection stays."""
    async with kit.node(fresh()) as wire:
        for text, code in (("{", "invalid_json"), ("[]", "invalid_message")):
            await wire.send_text(text)
            await wire.expect("error", code=code)


async def unknown_types_are_refused_by_id(kit: Kit) -> None:
    """A type that is not known is answered with `unknown_type` and the frame's id."""
    async with kit.node(fresh()) as wire:
        await wire.send("no_such_type", request_id="r-1")
        await wire.expect("error", code="unknown_type", request_id="r-1")


async def unlisted_fields_are_ignored(kit: Kit) -> None:
    """A field that is not listed is ignored."""
    async with kit.node(fresh(), no_such_field=[1]) as wire:
        _require(not await wire.rest(), "something came of it")


async def status_counts(kit: Kit) -> None:
    """`status` is answered with the node's own work."""
    async with kit.node(fresh()) as wire:
        await wire.send("status")
        await wire.expect("status", active_requests=0, queue_length=0)


# --- messages ------------------------------------------------------------------------------------


async def a_message_ends_once(kit: Kit) -> None:
    """A message ends in exactly one terminal frame, and nothing of it follows."""
    async with kit.node(fresh(), ["streaming"]) as wire:
        asked = fresh()
        await wire.ask(asked, fresh())
        await wire.until_end(asked)
        _require(not _about(asked, await wire.rest()), "something followed the terminal frame")


async def chunks_are_for_those_who_stream(kit: Kit) -> None:
    """A node without `streaming` gets no `response_chunk`."""
    async with kit.node(fresh()) as wire:
        asked = fresh()
        await wire.ask(asked, fresh())
        kinds = {frame["type"] for frame in await wire.until_end(asked)}
        _require("response_chunk" not in kinds, "it got one")


async def accepted_is_for_those_who_ask(kit: Kit) -> None:
    """A node with `accepted` is told so first of all, and another is not."""
    for capabilities in (["accepted"], []):
        async with kit.node(fresh(), capabilities) as wire:
            asked = fresh()
            await wire.ask(asked, fresh())
            first = (await wire.until_end(asked))[0]["type"]
            _require((first == "accepted") is bool(capabilities), f"{first!r} came first")


async def a_message_runs_once(kit: Kit) -> None:
    """A message that is sent again is a duplicate, and is not answered twice."""
    async with kit.node(fresh(), ["accepted"]) as wire:
        asked, channel = fresh(), fresh()
        await wire.ask(asked, channel)
        await wire.until_end(asked)
        await wire.ask(asked, channel)
        await wire.expect("accepted", request_id=asked, duplicate=True)
        _require(not _about(asked, await wire.rest()), "it was answered again")


async def an_id_is_one_message(kit: Kit) -> None:
    """An id that is used again in its channel with another content is refused."""
    async with kit.node(fresh()) as wire:
        asked, channel = fresh(), fresh()
        await wire.ask(asked, channel)
        await wire.until_end(asked)
        user = {"id": "conformance-user", "platform_id": "user"}
        about = {"user": user, "channel": {"id": channel}, "content": "something else"}
        await wire.send("message", id=asked, **about)
        await wire.expect("error", code="invalid_message", request_id=asked)


async def nothing_to_cancel_is_said(kit: Kit) -> None:
    """A `cancel` of what is not there is answered with `not_found`."""
    async with kit.node(fresh()) as wire:
        await wire.send("cancel", request_id="nothing")
        await wire.expect("error", code="not_found", request_id="nothing")


# --- lost connections ----------------------------------------------------------------------------


async def numbers_rise(kit: Kit) -> None:
    """Every frame about a message of a node that resumes has a `seq`, and they rise."""
    async with kit.node(fresh(), RESUME) as wire:
        asked = fresh()
        await wire.ask(asked, fresh())
        numbers = [frame.get("seq", 0) for frame in await wire.until_end(asked)]
        _require(all(numbers), "one has none")
        _require(numbers == sorted(set(numbers)), f"they are {numbers}")


async def plain_nodes_get_no_numbers(kit: Kit) -> None:
    """A node that does not resume is sent no `seq`."""
    async with kit.node(fresh()) as wire:
        asked = fresh()
        await wire.ask(asked, fresh())
        _require(all("seq" not in frame for frame in await wire.until_end(asked)), "it was")


async def what_was_missed_comes_again(kit: Kit) -> None:
    """A session that is resumed gets the frames above `last_seq` again, as they were, in order."""
    node_id, asked = fresh(), fresh()
    async with kit.node(node_id, RESUME) as wire:
        session_id = wire.registered["session_id"]
        await wire.ask(asked, fresh())
        frames = await wire.until_end(asked)
    about = {"session_id": session_id, "last_seq": frames[0]["seq"]}
    async with kit.node(node_id, RESUME, **about) as wire:
        _require(wire.registered["resumed"] is True, "resumed is not true")
        again = await wire.until_end(asked)
        _require(again == frames[1:], f"{len(again)} came again, of {len(frames) - 1}")


async def what_was_acked_does_not(kit: Kit) -> None:
    """What was acked does not come again."""
    node_id, asked = fresh(), fresh()
    async with kit.node(node_id, RESUME) as wire:
        session_id = wire.registered["session_id"]
        await wire.ask(asked, fresh())
        await wire.send("ack", seq=(await wire.until_end(asked))[-1]["seq"])
        await wire.rest()
    async with kit.node(node_id, RESUME, session_id=session_id, last_seq=0) as wire:
        _require(not _about(asked, await wire.rest()), "it came")


async def sessions_are_private(kit: Kit) -> None:
    """Another node's `session_id` gives `resumed: false`, and nothing of that node's."""
    async with kit.node(fresh(), RESUME) as owner:
        asked = fresh()
        await owner.ask(asked, fresh())
        await owner.until_end(asked)
        stolen = owner.registered["session_id"]
        async with kit.node(fresh(), RESUME, session_id=stolen, last_seq=0) as thief:
            _require(thief.registered["resumed"] is False, "resumed is true")
            _require(not _about(asked, await thief.rest()), "it was given the node's frames")


async def a_cut_ends_no_message(kit: Kit) -> None:
    """A message that is cut off, and sent again on the next connection, ends once."""
    node_id, asked, channel = fresh(), fresh(), fresh()
    async with kit.node(node_id) as wire:
        await wire.ask(asked, channel)
    async with kit.node(node_id) as wire:
        await wire.ask(asked, channel)
        await wire.until_end(asked)
        _require(not _about(asked, await wire.rest()), "it ended twice")


async def a_node_has_one_connection(kit: Kit) -> None:
    """A node that registers on another connection has its first one closed with 4000."""
    node_id = fresh()
    async with kit.node(node_id) as first, kit.node(node_id):
        code = await first.close_code()
        _require(code == 4000, f"it was closed with {code}")


async def unregistering_is_for_good(kit: Kit) -> None:
    """`unregister` closes with 1000, and nothing is kept for the node."""
    node_id, asked = fresh(), fresh()
    async with kit.node(node_id, RESUME) as wire:
        await wire.ask(asked, fresh())
        await wire.until_end(asked)
        await wire.send("unregister")
        code = await wire.close_code()
        _require(code == 1000, f"it was closed with {code}")
        about = {"session_id": wire.registered["session_id"], "last_seq": 0}
    async with kit.node(node_id, RESUME, **about) as wire:
        _require(wire.registered["resumed"] is False, "the session was resumed")
        _require(not _about(asked, await wire.rest()), "frames were kept")


PROMISES: Final[tuple[tuple[int, Callable[[Kit], Awaitable[None]]], ...]] = (
    (1, unlisted_fields_are_ignored),
    (1, unknown_types_are_refused_by_id),
    (1, junk_is_refused),
    (2, register_comes_first),
    (2, register_comes_once),
    (2, chunks_are_for_those_who_stream),
    (2, accepted_is_for_those_who_ask),
    (2, unregistering_is_for_good),
    (3, registered_is_whole),
    (3, status_counts),
    (3, a_node_has_one_connection),
    (4, a_message_ends_once),
    (4, a_message_runs_once),
    (4, an_id_is_one_message),
    (4, nothing_to_cancel_is_said),
    (5, numbers_rise),
    (5, plain_nodes_get_no_numbers),
    (5, what_was_missed_comes_again),
    (5, what_was_acked_does_not),
    (5, sessions_are_private),
    (5, a_cut_ends_no_message),
)


def _about(request_id: str, frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.get("request_id") == request_id]


def _require(condition: Any, failure: str) -> None:
    if not condition:
        raise Broken(failure)
