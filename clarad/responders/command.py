"""The responder that runs a shell command, and streams its standard output as the answer."""

import codecs
import logging

import msgspec

from clarad.process import shell
from clarad.responders import Answer, Request, ResponderError
from clarad.systemd import catalogue

log = logging.getLogger(__name__)


class Command:
    """Runs `command` with `/bin/sh -c` for each message.

    The command gets the message as JSON on its standard input, and in `CLARA_*` variables. Nothing
    of a message ever becomes part of the command's text.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._cause = ""  # why no process can be started; logged when it changes

    async def respond(self, request: Request, answer: Answer) -> None:
        """Stream the command's output. Cancelling ends all its processes."""
        # The decoder holds an incomplete sequence back until the next piece.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

        def on_stdout(data: bytes | bytearray) -> None:
            if text := decoder.decode(data):
                answer.text(text)

        def on_stopped(processes: int) -> None:
            answer.stopped.processes += processes

        def on_started() -> None:
            self._cause = ""

        try:
            result = await shell.run(
                self._command,
                env=shell.environment(_variables(request)),
                stdin=msgspec.json.encode(request.message),
                on_started=on_started,
                on_stdout=on_stdout,
                on_stopped=on_stopped,
            )
        except OSError as error:
            if str(error) != self._cause:
                self._cause = str(error)
                about = catalogue.CANNOT_START.about()
                log.error("no process can be started: %s", error, extra=about)
            raise ResponderError("The command cannot be started; try again later.") from error
        if rest := decoder.decode(b"", final=True):
            answer.text(rest)
        if result.exit_status != 0:
            raise ResponderError(_failure(result))


def _variables(request: Request) -> dict[str, str]:
    message = request.message
    return {
        "CLARA_REQUEST_ID": message.id,
        "CLARA_NODE_ID": request.node_id,
        "CLARA_PLATFORM": request.platform,
        "CLARA_SESSION_ID": request.session_id,
        "CLARA_USER_ID": message.user.id,
        "CLARA_USER_NAME": message.user.display_name or message.user.name or "",
        "CLARA_CHANNEL_ID": message.channel.id,
        "CLARA_CHANNEL_TYPE": message.channel.type,
        "CLARA_TIER": message.tier_override or "",
        "CLARA_CONTENT": message.content,
    }


def _failure(result: shell.Result) -> str:
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    if lines:
        return lines[-1]
    return f"The command failed: {shell.describe_exit(result.exit_status)}."
