"""The Python interpreter of a sandbox, which keeps its variables between calls."""

import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from sandbox.engine import Result
from sandbox.inside import program
from sandbox.replies import Ended
from sandbox.sandbox import OUTPUT_CAP, Sandbox, result_of
from sandbox.session import OnOutput, Running

MAX_CODE: Final = 1 << 20
"""Bytes of one piece of code."""

_HEADER: Final = struct.Struct(">8sI")
"""The header of a call: a token that its code cannot guess, and the code's length."""


@dataclass(frozen=True)
class Executed:
    """How a call ended.

    With `state_lost` the interpreter and its variables are gone: it ended in this call, or since
    the call before.
    """

    result: Result
    state_lost: bool


class Interpreter:
    """A sandbox's Python, started by the first call, and again by the first call after its end."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._running: Running | None = None
        self._has_state = False  # variables of an earlier call
        self._lock = trio.Lock()

    async def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Executed:
        """Run code with the variables of earlier calls; calls wait for each other.

        A timeout or a cancellation kills the interpreter and all that it has started, so that its
        variables are lost.

        Raises:
            GoneError: the sandbox has ended.
            ValueError: the code is too long.
        """
        text = code.encode(errors="replace")
        if len(text) > MAX_CODE:
            raise ValueError(f"the code is longer than {MAX_CODE} bytes")
        with self._sandbox.in_use():
            async with self._lock:
                before, running = self._running, self._ensure_started()
                state_lost = self._has_state and running is not before
                executed = await self._execute(running, text, timeout, on_output, on_killed)
                # Not reached by a cancelled call: the next one reports the loss.
                self._has_state = not executed.state_lost
                return replace(executed, state_lost=state_lost or executed.state_lost)

    def _ensure_started(self) -> Running:
        if self._running is None or self._running.over.is_set():
            argv = ["python3", "-c", program("interpreter")]
            self._running = self._sandbox.start(argv, cap=OUTPUT_CAP, calls=True)
        return self._running

    async def _execute(
        self,
        running: Running,
        code: bytes,
        timeout: float | None,
        on_output: OnOutput | None,
        on_killed: Callable[[int], None] | None,
    ) -> Executed:
        begun = trio.current_time()
        ended: Ended | None = None
        token = secrets.token_bytes(8)
        async with self._sandbox.kill_on_error(running, on_killed):
            with trio.move_on_after(float("inf") if timeout is None else timeout) as scope:
                call = _HEADER.pack(token, len(code)) + code
                ended = await running.call(token, call, on_output)
            if scope.cancelled_caught:
                await self._sandbox.kill(running)
        if running.is_refused:
            await self._sandbox.make_room(running)  # raises if the sandbox is of no use
        wall = trio.current_time() - begun
        result = result_of(
            running, ended or running.end, timed_out=scope.cancelled_caught, wall=wall
        )
        return Executed(result, state_lost=running.over.is_set())
