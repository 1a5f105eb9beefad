"""The terminal adapter: one user in one channel; each line is a message."""

import itertools
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final, TextIO

import trio

from clarad import protocol
from clarad.adapters import Adapter, AnswerFrame, Outcome

PROMPT: Final = "> "
SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPINNER_PAUSE: Final = 0.08
"""Seconds for each frame of the spinner."""

# Unicode 16, UAX #9, section 2: characters that change the display order could make one ID look
# like another, or hide the end of a command.
BIDI_CONTROLS: Final = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))

# No text may control the terminal: control characters are replaced by their symbols.
HARMLESS: Final = {c: chr(0x2400 + c) for c in range(0x20) if chr(c) not in "\n\t"} | {
    0x7F: "␡",
    **dict.fromkeys((*range(0x80, 0xA0), *BIDI_CONTROLS), "�"),
}


class Screen:
    """Shows an answer as it arrives; on a terminal with a spinner and the tools that run."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._spinning = False
        self._at_line_start = True
        self.is_waiting = False

    def text(self, chunk: str) -> None:
        """Show a piece of the answer; a file or pipe gets it unchanged."""
        self._clear_spinner()
        if not chunk:
            return
        self._write(chunk.translate(HARMLESS) if self._is_terminal else chunk)
        self._at_line_start = chunk.endswith("\n")

    def note(self, text: str) -> None:
        """Show a line that is not part of the answer, on a terminal only."""
        if self._is_terminal:
            self.end_line()
            self._write(f"\x1b[2m{text.translate(HARMLESS)}\x1b[0m\n")

    def remark(self, text: str) -> None:
        """Show why a message was not answered."""
        if text:
            self.end_line()
            self._write(f"[{text.translate(HARMLESS)}]\n")

    def prompt(self) -> None:
        """Ask for a line."""
        if self._is_terminal:
            self._write(PROMPT)
            self._at_line_start = False

    def line_was_entered(self) -> None:
        """Note that the user's Enter has begun a new line."""
        self._at_line_start = True

    def end_line(self) -> None:
        """Begin a new line, unless the cursor is at the start of one."""
        self._clear_spinner()
        if not self._at_line_start:
            self._write("\n")
            self._at_line_start = True

    async def spin(self) -> None:
        """Show a spinner while `is_waiting` is set, at the start of lines; runs until cancelled."""
        for picture in itertools.cycle(SPINNER if self._is_terminal else ""):
            if self.is_waiting and self._at_line_start:
                self._spinning = True
                self._write(f"\r{picture} ")
            await trio.sleep(SPINNER_PAUSE)

    def _clear_spinner(self) -> None:
        if self._spinning:
            self._spinning = False
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Terminal:
    """A conversation."""

    def __init__(self, adapter: Adapter, screen: Screen, *, user: str, channel: str) -> None:
        self._adapter = adapter
        self._screen = screen
        self._user = protocol.User(id=f"cli-{user}", platform_id=user, name=user)
        self._channel = protocol.Channel(id=channel, type="dm")
        self._running: str | None = None
        self.is_cancelling = False

    async def ask(self, content: str) -> Outcome:
        """Send a message, show the answer as it arrives, and return its outcome."""
        message = protocol.Message(
            id=f"cli-{secrets.token_hex(12)}",
            user=self._user,
            channel=self._channel,
            content=content,
        )
        self._running, self.is_cancelling = message.id, False
        self._screen.is_waiting = True
        try:
            answer = self._adapter.ask(message)
            async for frame in answer:
                if isinstance(frame, Outcome):
                    return frame
                self._show(frame)
            raise AssertionError("an answer ends in its outcome")
        finally:
            self._running, self.is_cancelling = None, False
            self._screen.is_waiting = False
            self._screen.end_line()

    def cancel(self, reason: str) -> bool:
        """Cancel the current message; `False` if there is none."""
        if self._running is None or not self._adapter.cancel(self._running, reason):
            return False
        self.is_cancelling = True
        return True

    @property
    def is_waiting_for_the_daemon(self) -> bool:
        """Whether there is a message, but no connection."""
        return self._running is not None and not self._adapter.is_connected

    def _show(self, frame: AnswerFrame) -> None:
        match frame:
            case protocol.ResponseChunk():
                self._screen.text(frame.chunk)
            case protocol.ToolStart():
                self._screen.note(f"{frame.emoji} {frame.tool_name} {frame.description or ''}")
            case protocol.ToolResult():
                outcome = "done" if frame.success else "failed"
                self._screen.note(f"   {frame.tool_name} {outcome} ({frame.duration_ms} ms)")
            case protocol.Status():
                self._screen.note(f"waiting; {frame.queue_length} before this one")
            case _:
                pass


async def chat(terminal: Terminal, screen: Screen) -> None:
    """Prompt for lines until Ctrl-D. Ctrl-C cancels the current message.

    A second Ctrl-C leaves at once. So do both keys while there is no connection: nothing would
    answer.
    """
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with trio.open_nursery() as nursery:
            leave = nursery.cancel_scope.cancel
            entered, lines = trio.open_memory_channel[str](0)
            nursery.start_soon(screen.spin)
            nursery.start_soon(_handle_interrupts, interrupts, terminal, screen, leave)
            nursery.start_soon(_read_lines, entered, terminal, screen, leave)
            screen.prompt()
            async for line in lines:
                if line.strip():
                    screen.remark(_remark(await terminal.ask(line)))
                screen.prompt()
            leave("Ctrl-D")


def _remark(outcome: Outcome) -> str:
    match outcome:
        case protocol.Cancelled():
            return f"cancelled: {outcome.reason}"
        case protocol.Error():
            return f"error: {outcome.message}"
        case _:
            return ""


async def _handle_interrupts(
    interrupts: AsyncIterator[int],
    terminal: Terminal,
    screen: Screen,
    leave: Callable[[str], None],
) -> None:
    async for _ in interrupts:
        if terminal.is_cancelling or terminal.is_waiting_for_the_daemon:
            leave("Ctrl-C")
        elif terminal.cancel("Ctrl-C"):
            screen.remark("cancelling …; Ctrl-C again leaves")
        else:
            screen.remark("Ctrl-D leaves")
            screen.prompt()


async def _read_lines(
    entered: trio.MemorySendChannel[str],
    terminal: Terminal,
    screen: Screen,
    leave: Callable[[str], None],
) -> None:
    """Read lines from standard input until its end, at most one ahead of the answers."""
    async with entered:
        while (line := await _read_line(screen)) is not None:
            await entered.send(line)
        if terminal.is_waiting_for_the_daemon and sys.stdin.isatty():
            leave("Ctrl-D")


async def _read_line(screen: Screen) -> str | None:
    """Read a line from standard input; `None` at its end. The terminal itself does the editing."""
    fd = sys.stdin.fileno()
    line = bytearray()
    while not line.endswith(b"\n"):
        with suppress(PermissionError):  # epoll refuses plain files, which are always readable
            await trio.lowlevel.wait_readable(fd)
        byte = os.read(fd, 1)
        if not byte:
            screen.end_line()
            return line.decode(errors="replace") if line else None
        line += byte
    screen.line_was_entered()
    return line.decode(errors="replace").rstrip("\n")
