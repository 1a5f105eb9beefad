"""What the keeper of a sandbox and the agent in it say to each other.

A frame is a header (its kind, the number of the run, the payload's length) and a payload.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct(">BII")

# To the agent. START: JSON, see `runs.Run`. INPUT: for standard input, or for fd 3 of a run with
# `calls`. CLOSE: the end of it. CALL: another call begins, count the output anew; its token.
# KILL: end it.
START, INPUT, CLOSE, CALL, KILL = range(1, 6)

# From the agent. READY: JSON, once. STDOUT, STDERR: output, up to the cap; of a run with `calls`
# between CALL and REPLY only. TAKEN: the run has read so many bytes of INPUT. REPLY: JSON; a call
# has ended, and its output has been sent before. EXIT: JSON; the run is over, and nothing of it is
# left.
READY, STDOUT, STDERR, TAKEN, REPLY, EXIT = range(16, 22)

NUMBER = struct.Struct(">I")
"""The payload of TAKEN."""

ANSWER = struct.Struct(">8sB")
"""What a call's process writes to fd 4 at its end: the call's token, and its exit status.

The code of the call can write there, too. So it is of one size, is looked at by the agent, and
counts only once, with the token of the call that goes on; anything else ends the run.
"""

MAX_PAYLOAD = 4 << 20
MAX_FROM_AGENT = 128 << 10
"""Bytes of a payload, and of one that comes from the agent."""


class Frame(NamedTuple):
    """One frame."""

    kind: int
    run: int
    payload: bytes


class FrameError(ValueError):
    """The bytes are no frames: a payload would be longer than any is."""


def encode(kind: int, run: int, payload: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    return HEADER.pack(kind, run, len(payload)) + payload


class Decoder:
    """Takes bytes, split anyhow, and gives frames."""

    def __init__(self, most: int = MAX_PAYLOAD) -> None:
        self._received = bytearray()
        self._most = most

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Return the frames that `data` completes.

        Raises:
            FrameError: nothing more can be made of these bytes.
        """
        self._received += data
        frames = []
        at = 0
        while len(self._received) - at >= HEADER.size:
            kind, run, length = HEADER.unpack_from(self._received, at)
            if length > self._most:
                raise FrameError(f"a payload of {length} bytes")
            end = at + HEADER.size + length
            if len(self._received) < end:
                break
            frames.append(Frame(kind, run, bytes(self._received[at + HEADER.size : end])))
            at = end
        del self._received[:at]
        return frames
