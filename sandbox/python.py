"""The Python interpreter of a sandbox, which keeps its variables between calls."""

import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from sandbox.engine import Result
from sandbox.inside import program
from sandbox.said import Ended
from sandbox.sandbox import OUTPUT_CAP, Sandbox, result_of
from sandbox.session import OnOutput, Running

MAX_CODE: Final = 1 << 20
"""Bytes of one piece of code."""

_HEADER: Final = struct.Struct(">8sI")
"""Of a call: a token that nobody can know before, and the code's length."""


@dataclass(frozen=True)
class Executed:
    """How a call ended; `forgot` says that the interpreter, with its variables, has ended with it,
    or had ended since the call before.
    """

    result: Result
    forgot: bool


class Interpreter:
    """One for each sandbox; started when it is first called, and again when it has ended."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._running: Running | None = None
        self._is_kept = False  # there are variables of a call before
        self._turn = trio.Lock()

    async def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Executed:
        """Run code with the variables of the calls before; one call after the other.

        A timeout, or cancelling, kills the interpreter with all that it has started, and its
        variables are gone.

        Raises:
            GoneError: the sandbox has ended.
            ValueError: the code is too long.
        """
        text = code.encode(errors="replace")
        if len(text) > MAX_CODE:
            raise ValueError(f"the code is longer than {MAX_CODE} bytes")
        with self._sandbox.in_use():
            async with self._turn:
                before, running = self._running, self._started()
                forgot = self._is_kept and running is not before
                executed = await self._execute(running, text, timeout, on_output, on_killed)
                self._is_kept = not executed.forgot  # a call that is cancelled has told nobody
                return replace(executed, forgot=forgot or executed.forgot)

    def _started(self) -> Running:
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
        async with self._sandbox.ending(running, on_killed):
            with trio.move_on_after(float("inf") if timeout is None else timeout) as scope:
                call = _HEADER.pack(token, len(code)) + code
                ended = await running.call(token, call, on_output)
            if scope.cancelled_caught:
                await self._sandbox.end(running)
        if running.is_refused:
            await self._sandbox.make_room(running)  # raises if the sandbox is of no use
        wall = trio.current_time() - begun
        result = result_of(
            running, ended or running.end, timed_out=scope.cancelled_caught, wall=wall
        )
        return Executed(result, forgot=running.over.is_set())
