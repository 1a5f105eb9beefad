"""The responder that runs what a message says in its sender's sandbox; it needs no model."""

import codecs
import logging
import re
from typing import Final

from clarad.responders import Answer, NoSandboxError, Request, Tools
from clarad.systemd import catalogue
from sandbox import EngineError, SandboxError
from sandbox.tools import Answer as ToolAnswer

log = logging.getLogger(__name__)

HELP: Final = (
    "Begin a message with /python or /sh: what follows runs in your sandbox, and what it prints is "
    "the answer.\n"
)

MAX_PREVIEW: Final = 200
"""Characters of what a tool is given, and of what it says, in its frames and events."""

_TOOLS: Final = {
    "python": ("execute_python", "code", "🐍"),
    "sh": ("run_shell", "command", "🐚"),
}
_COMMAND: Final = re.compile(r"\s*/(python|sh)(?!\S)[ \t]*\r?\n?(.*)", re.DOTALL)


class ToolUser:
    """Runs `/python …` and `/sh …`; everything else is answered with how it is done."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def respond(self, request: Request, answer: Answer) -> None:
        """Stream what is printed; cancelling kills what runs."""
        match = _COMMAND.fullmatch(request.message.content)
        if match is None or not match[2].strip():
            answer.text(HELP)
            return
        tool, argument, emoji = _TOOLS[match[1]]
        answer.tool_start(tool, description=match[2].strip()[:MAX_PREVIEW], emoji=emoji)
        try:
            used = await self._use(tool, request.message.user.id, {argument: match[2]}, answer)
        except SandboxError as error:
            used = ToolAnswer(_for_user(error), failed=True, lost=True)
        except BaseException:
            answer.stopped.tools += 1
            answer.tool_result(tool, success=False, preview="stopped")
            raise
        answer.tool_result(tool, success=not used.failed, preview=used.text[:MAX_PREVIEW])
        if used.lost:
            raise NoSandboxError(f"{used.text[0].upper()}{used.text[1:]}.")

    async def _use(
        self, tool: str, owner: str, arguments: dict[str, str], answer: Answer
    ) -> ToolAnswer:
        def count(processes: int) -> None:
            answer.stopped.sandbox_execs += 1
            answer.stopped.processes += processes

        printed = _Printed(answer)
        used = await self._tools.use(tool, owner, arguments, on_output=printed.add, on_killed=count)
        printed.end("" if used.lost else used.remarks)
        return used


class _Printed:
    """What is printed, as it comes: two streams of bytes that become one text."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")(errors="replace")
            for stream in ("stdout", "stderr")
        }
        self._is_line_begun = False

    def add(self, stream: str, data: bytes) -> None:
        """Say a piece; a character that it has cut in two waits for its other half."""
        self._say(self._decoders[stream].decode(data))

    def end(self, remarks: str) -> None:
        """Say what was held back, and the remarks on a line of their own."""
        for decoder in self._decoders.values():
            self._say(decoder.decode(b"", final=True))
        if remarks:
            self._say("\n" * self._is_line_begun + remarks + "\n")

    def _say(self, text: str) -> None:
        if text:
            self._is_line_begun = not text.endswith("\n")
            self._answer.text(text)


def _for_user(error: SandboxError) -> str:
    """Say it to a user: what is wrong with an engine, and where it is, is for the operator."""
    if isinstance(error, EngineError):
        about = catalogue.NO_SANDBOX.about()
        log.error("there is no sandbox to be had: %s", error, extra=about)
        return "there is no sandbox to be had at the moment; try again later"
    return str(error)
