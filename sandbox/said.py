"""What an agent says about itself and its runs, decoded into structs that bound it. No I/O."""

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
    """What an agent says of itself, once."""

    python: _Text = ""
    counters: Annotated[tuple[_Text, ...], Meta(max_length=10)] = ()


class Ended(Struct, frozen=True, forbid_unknown_fields=True):
    """How a run, or a call, has ended; the counts are the agent's own.

    `totals` and `tails` are those of both outputs, a tail's characters being its bytes. `error`
    says why it was never started.
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
        FrameError: it is not what an agent says.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise FrameError(str(error)) from error
