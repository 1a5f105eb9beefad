"""The conformance kit finds what a gateway promises, and what it does not keep."""

from pathlib import Path

import pytest
import trio

from clarad.conformance import gateway
from clarad.conformance.wire import Kit
from clarad.delivery.node import Node
from tests.conftest import Running, Start
from tests.daemon_process import clarad, environment


def kit(running: Running, secret: str | None = None) -> Kit:
    return Kit(running.url, secret, patience=5)


async def broken(running: Running) -> dict[str, str | None]:
    """Return the promises that are not kept, and how."""
    verdicts = await gateway.check(kit(running))
    return {verdict.promise: verdict.broken for verdict in verdicts if verdict.broken is not None}


async def test_the_daemon_keeps_every_promise(running: Running) -> None:
    assert await broken(running) == {}


async def test_a_secret_is_shown(start: Start) -> None:
    running = await start(gateway_secret="right")
    verdicts = await gateway.check(kit(running, "right"))
    assert [verdict for verdict in verdicts if verdict.broken] == []


async def test_acks_that_are_ignored_are_found(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "ack", lambda _node, _seq: 0)
    assert await broken(running) == {"What was acked does not come again.": "it came"}


async def test_a_gateway_that_hangs_is_found(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "resend", lambda *_: None)
    monkeypatch.setattr(Node, "send_error", lambda *_, **__: None)
    verdicts = await gateway.check(Kit(running.url, None, patience=0.2))
    found = {verdict.promise: verdict.broken for verdict in verdicts}
    why = found["A `cancel` of what is not there is answered with `not_found`."]
    assert why == "nothing came within 0.2 s"


async def test_the_command_says_what_is_kept(running: Running) -> None:
    env = environment(running.settings.state_dir)
    done = await trio.to_thread.run_sync(lambda: clarad("adapter-test", running.url, env=env))
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[-1] == f"{len(gateway.PROMISES)} kept"
    assert all(line.startswith("kept") for line in lines[:-1])


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "nonsense"])
def test_no_gateway_is_said_in_one_line(tmp_path: Path, url: str) -> None:
    done = clarad("adapter-test", url, env=environment(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
