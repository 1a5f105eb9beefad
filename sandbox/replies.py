"""Decodes the agent's JSON into structs that bound its values: the agent is not trusted. No I/O."""

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from sandbox.inside.frames import FrameError

_MAX_TAIL: Final = 4 << 10

_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Seconds = Annotated[float, Meta(ge=0, lt=1e12)]
_Text = Annotated[str, Meta(max_length=200)]
_Tail = Annotated[str, Meta(max_length=_MAX_TAIL)]


class Ready(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of READY."""

    python: _Text = ""
    counters: Annotated[tuple[_Text, ...], Meta(max_length=10)] = ()


class Ended(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of EXIT and REPLY: how a run, or a call, has ended.

    `totals` and `tails` are of standard output and standard error; each character of a tail stands
    for a byte. `error` says why the run could not be started.
    """

    status: Annotated[int, Meta(ge=-255, le=255)] | None = None
    error: _Text | None = None
    wall: _Seconds = 0.0
    cpu: _Seconds = 0.0
    killed: _Count = 0
    oom: _Count = 0
    pids: _Count = 0
    totals: tuple[_Count, _Count] | None = None
    tails: tuple[_Tail, _Tail] = ("", "")


T = TypeVar("T", Ready, Ended)


def decode(payload: bytes, kind: type[T]) -> T:
    """Read a frame's JSON.

    Raises:
        FrameError: no agent sends this.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise FrameError(str(error)) from error
