"""The responder that runs the code of a message in its sender's sandbox, without a model."""

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
"""Characters of a tool's input and output in frames and events."""

_TOOLS: Final = {
    "python": ("execute_python", "code", "🐍"),
    "sh": ("run_shell", "command", "🐚"),
}
_COMMAND: Final = re.compile(r"\s*/(python|sh)(?!\S)[ \t]*\r?\n?(.*)", re.DOTALL)


class ToolUser:
    """Runs `/python …` and `/sh …`, and answers everything else with `HELP`."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def respond(self, request: Request, answer: Answer) -> None:
        """Stream what the code prints. Cancelling kills its processes."""
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
        def on_killed(processes: int) -> None:
            answer.stopped.sandbox_execs += 1
            answer.stopped.processes += processes

        printed = _Printed(answer)
        used = await self._tools.use(
            tool, owner, arguments, on_output=printed.add, on_killed=on_killed
        )
        printed.end("" if used.lost else used.remarks)
        return used


class _Printed:
    """Joins standard output and standard error, as they come, into the text of the answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")(errors="replace")
            for stream in ("stdout", "stderr")
        }
        self._is_line_begun = False

    def add(self, stream: str, data: bytes) -> None:
        """Send a piece; the decoder holds an incomplete character back until the next piece."""
        self._send(self._decoders[stream].decode(data))

    def end(self, remarks: str) -> None:
        """Send what was held back, and the remarks on a new line."""
        for decoder in self._decoders.values():
            self._send(decoder.decode(b"", final=True))
        if remarks:
            self._send("\n" * self._is_line_begun + remarks + "\n")

    def _send(self, text: str) -> None:
        if text:
            self._is_line_begun = not text.endswith("\n")
            self._answer.text(text)


def _for_user(error: SandboxError) -> str:
    """Return the text for the user; details of an engine's failure go to the log only."""
    if isinstance(error, EngineError):
        about = catalogue.NO_SANDBOX.about()
        log.error("there is no sandbox to be had: %s", error, extra=about)
        return "there is no sandbox to be had at the moment; try again later"
    return str(error)
