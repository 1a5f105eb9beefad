"""The terminal adapter, against a gateway."""

import io

import pytest
import trio

from clarad import protocol
from clarad.adapters import GatewayError, open_adapter
from clarad.adapters.terminal import Screen, Terminal
from clarad.events import EventType
from tests.conftest import Running


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_cancel_that_comes_too_late_is_not_taken_for_the_answer(running: Running) -> None:
    out = io.StringIO()
    async with open_adapter(running.url, node_id="cli-1", platform="cli") as adapter:
        terminal = Terminal(adapter, Screen(out), user="u", channel="c")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cancel_twice() -> None:
                received = await running.event(EventType.MESSAGE_RECEIVED)
                request_id = str(received.request_id)
                await running.responder.begun[request_id].wait()
                terminal.cancel("Ctrl-C")
                terminal.cancel("Ctrl-C")
                running.responder.release[request_id].set()

            outcome = await terminal.ask("slow to stop")
    assert isinstance(outcome, protocol.Cancelled)


async def test_tools_are_shown_on_a_terminal_and_kept_out_of_a_pipe(running: Running) -> None:
    for out, shown in ((FakeTerminal(), True), (io.StringIO(), False)):
        async with open_adapter(running.url, node_id="cli-1", platform="cli") as adapter:
            terminal = Terminal(adapter, Screen(out), user="u", channel="c")
            outcome = await terminal.ask("tool")
        assert isinstance(outcome, protocol.ResponseEnd)
        assert ("hammer" in out.getvalue()) is shown


async def test_a_gateway_that_refuses_says_why(running: Running) -> None:
    with pytest.raises(GatewayError, match="nobody answers"):
        async with open_adapter("ws://127.0.0.1:1", node_id="n", platform="p", patience=0):
            pass
