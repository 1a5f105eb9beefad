"""The adapter of docs/writing-an-adapter.md works as it stands there."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from examples import lines
from tests.daemon_process import Process, daemon

ROOT = Path(__file__).parents[2]
RESPONDER = {
    "CLARA_RESPONDER": "command",
    "CLARA_RESPONDER_COMMAND": r"""
        case "$CLARA_CONTENT" in
            fail) echo 'no such luck' >&2; exit 3;;
            hold) echo begun; sleep 1000;;
            *) printf 'you said %s' "$CLARA_CONTENT";;
        esac
    """,
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with daemon(tmp_path_factory.mktemp("state"), **RESPONDER) as running:
        yield running


async def connect(port: int) -> anyio.abc.SocketStream:
    """Connect to the adapter, once it listens."""
    while True:
        try:
            return await anyio.connect_tcp("127.0.0.1", port)
        except OSError:
            await anyio.sleep(0.01)


async def converse(url: str, port: int, said: str) -> str:
    """Say these lines to the adapter; return what it answers, up to the answer to `.`."""
    heard = ""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lines.main, url, port)
            async with await connect(port) as user:
                await user.send(said.encode())
                while "you said .\n" not in heard:
                    heard += (await user.receive()).decode()
            tasks.cancel_scope.cancel()
    return heard


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_every_line_is_answered(process: Process, backend: str) -> None:
    said = "hello\nfail\nstill here\n.\n"
    heard = anyio.run(converse, process.url, free_port(), said, backend=backend)
    answers = ["you said hello", "[no such luck]", "you said still here", "you said ."]
    assert heard.splitlines() == answers


def test_the_page_shows_the_file() -> None:
    page = (ROOT / "docs/writing-an-adapter.md").read_text()
    program = (ROOT / "examples/lines.py").read_text()
    shown = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == program
    code = [line for line in program.splitlines() if line.strip()]
    assert len(code) <= 50
