"""The keeper's end of the protocol, against an agent that does what the test says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel

from sandbox import GoneError, Sandbox
from sandbox import sandbox as sandbox_module
from sandbox.inside import frames
from sandbox.python import Interpreter
from sandbox.session import WINDOW, Session
from tests.sandbox.scripted import Agent, Engine


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
async def session(agent: Agent, nursery: trio.Nursery) -> Session:
    made = Session(agent.theirs)
    nursery.start_soon(agent.ready)
    await nursery.start(made.serve)
    return made


@pytest.fixture
def sandbox(session: Session, nursery: trio.Nursery) -> Sandbox:
    return Sandbox("name", Engine(nursery), session)


async def test_what_the_agent_says_of_itself_is_known(session: Session) -> None:
    assert session.about.python == "3"


async def test_a_run_is_asked_for_and_its_end_is_its_result(
    sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    results: list[Any] = []

    async def run() -> None:
        results.append(await sandbox.run("true", env={"A": "b"}, cwd="/tmp", cap=5))

    nursery.start_soon(run)
    kind, number, payload = await agent.frame()
    assert kind == frames.START
    request = json.loads(payload)
    assert request["argv"] == ["/bin/sh", "-c", "true"]
    assert (request["cap"], request["cwd"], request["env"]["A"]) == (5, "/tmp", "b")
    assert await agent.frame() == (frames.CLOSE, number, b"")
    await agent.say(frames.STDOUT, number, b"12345")
    await agent.exit(number, status=3, totals=[9, 0], tails=["789", ""], cpu=0.5, wall=1.0, oom=1)
    while not results:
        await trio.lowlevel.checkpoint()
    (result,) = results
    assert (result.exit_status, result.cpu, result.wall) == (3, 0.5, 1.0)
    assert (result.stdout.kept, result.stdout.tail, result.stdout.cut) == (b"12345", b"789", 1)
    assert result.out_of_memory
    assert not result.out_of_processes


async def test_input_waits_until_it_is_read(
    session: Session, agent: Agent, nursery: trio.Nursery
) -> None:
    running = session.start({"argv": ["cat"], "cap": 0})
    assert (await agent.frame()).kind == frames.START
    nursery.start_soon(running.feed, bytes(2 * WINDOW))
    received = 0
    while received < WINDOW:
        received += len((await agent.frame()).payload)
    running.kill()
    assert (await agent.frame()).kind == frames.KILL  # it does not wait behind the other half
    await agent.say(frames.TAKEN, 1, frames.NUMBER.pack(WINDOW))
    while received < 2 * WINDOW:
        received += len((await agent.frame()).payload)
    assert (await agent.frame()).kind == frames.CLOSE


async def refuse(agent: Agent) -> None:
    """Say that no process can be started for a run that is asked for."""
    await agent.say(frames.EXIT, await agent.start(), b'{"error": "no more", "pids": 1}')


async def test_a_run_that_cannot_be_started_beside_another_says_why(
    session: Session, sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    session.start({"argv": ["sleep"], "cap": 0})
    assert (await agent.frame()).kind == frames.START
    nursery.start_soon(refuse, agent)
    result = await _run_later(sandbox, agent)
    assert result.exit_status == 126
    assert result.stderr.kept == b"no process can be started: no more\n"
    assert result.out_of_processes
    assert not result.made_room


async def test_a_run_is_tried_again_if_the_run_that_had_every_process_ends_as_it_is_refused(
    session: Session, sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    session.start({"argv": ["sleep"], "cap": 0})
    _, other, _ = await agent.frame()
    refusal, end = b'{"error": "no more", "pids": 1}', b'{"status": 0, "totals": [0, 0]}'

    async def answer() -> None:
        number = await agent.start()
        both = frames.encode(frames.EXIT, number, refusal) + frames.encode(frames.EXIT, other, end)
        await agent.say_all(both)
        await agent.exit(await agent.start())

    nursery.start_soon(answer)
    result = await _run_later(sandbox, agent)
    assert (result.exit_status, result.made_room) == (0, False)
    assert not sandbox.is_lost


async def test_a_sandbox_in_which_nothing_can_be_started_is_ended(
    sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    nursery.start_soon(refuse, agent)
    with trio.fail_after(10), pytest.raises(GoneError, match="the next call gets a new one"):
        await sandbox.run("true")
    assert sandbox.is_lost


async def _run_later(sandbox: Sandbox, agent: Agent) -> Any:
    with trio.fail_after(10):
        return await sandbox.run("true")


async def test_an_agent_that_hangs_up_ends_all_runs(
    sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    async def die() -> None:
        await agent.frame()
        await agent.die()

    nursery.start_soon(die)
    with trio.fail_after(10), pytest.raises(GoneError, match="has ended under what ran in it"):
        await sandbox.run("sleep 1000")
    assert sandbox.is_lost
    with pytest.raises(GoneError, match="the next call gets a new one"):
        await sandbox.run("true")


TOO_LONG = frames.MAX_FROM_AGENT + 1

NONSENSE = {
    "no frame": b"\xff" * 9,
    "a frame of no kind": frames.encode(99, 1),
    "a frame longer than an agent's": frames.HEADER.pack(
        frames.STDOUT, 1, frames.MAX_FROM_AGENT + 1
    ),
    "no JSON": frames.encode(frames.EXIT, 1, b"no JSON"),
    "deep JSON": frames.encode(frames.EXIT, 1, b"[" * 100_000),
    "a deep value": frames.encode(frames.EXIT, 1, b'{"status": ' + b"[" * 100_000),
    "a deep value that nobody asked for": frames.encode(frames.EXIT, 1, b'{"x": ' + b"[" * 100_000),
    "a huge number": frames.encode(frames.EXIT, 1, b'{"killed": ' + b"9" * 10_000 + b"}"),
    "a wrong type": frames.encode(frames.EXIT, 1, b'{"totals": {"stdout": 1}}'),
    "a count below nothing": frames.encode(frames.EXIT, 1, b'{"totals": [-1, 0]}'),
    "a tail too long": frames.encode(frames.EXIT, 1, b'{"tails": ["%s", ""]}' % (b"x" * 5000)),
    "a reply to no call": frames.encode(frames.REPLY, 1, b"{}"),
    "half a count": frames.encode(frames.TAKEN, 1, b"\0"),
    "more taken than sent": frames.encode(frames.TAKEN, 1, frames.NUMBER.pack(1)),
    "more output than is passed on": frames.encode(frames.STDOUT, 1, b"xx"),
    "a greeting of another kind": frames.encode(frames.READY, 0, b'{"python": 3}'),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_an_agent_that_talks_nonsense_counts_as_gone(
    sandbox: Sandbox, agent: Agent, nursery: trio.Nursery, nonsense: bytes
) -> None:
    async def talk() -> None:
        await agent.frame()
        await agent.say_all(nonsense)

    nursery.start_soon(talk)
    with trio.fail_after(10), pytest.raises(GoneError):
        await sandbox.run("true", cap=1)


async def test_an_agent_that_does_not_end_a_run_is_given_up(
    sandbox: Sandbox, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "UNKILLABLE", 0.05)
    told: list[int] = []
    with trio.fail_after(10), trio.move_on_after(0.05) as scope:
        await sandbox.run("sleep 1000", on_killed=told.append)
    assert scope.cancelled_caught
    assert told == [0]
    assert sandbox.is_lost


async def execute(sandbox: Sandbox, code: str, **listeners: Any) -> None:
    await Interpreter(sandbox).execute(code, **listeners)


@pytest.mark.parametrize(
    ("end", "expected"),
    [({"status": 0, "killed": 2}, [2]), ({"status": 0}, [0]), ({"error": "none left"}, [])],
    ids=["with what it left", "with nothing left", "not started"],
)
@pytest.mark.parametrize("use", [Sandbox.run, execute], ids=["a command", "Python"])
async def test_a_run_that_ends_as_it_is_cancelled_is_told_if_it_had_begun(
    sandbox: Sandbox,
    agent: Agent,
    nursery: trio.Nursery,
    use: Callable[..., Any],
    end: dict[str, Any],
    expected: list[int],
) -> None:
    async def talk() -> None:
        number = await agent.start()
        said = json.dumps(end).encode()
        output = frames.encode(frames.STDOUT, number, b"ready")
        await agent.say_all(output + frames.encode(frames.EXIT, number, said))

    nursery.start_soon(talk)
    told: list[int] = []
    with trio.fail_after(10), trio.CancelScope() as scope:
        await use(
            sandbox,
            "true",
            on_output=lambda *_: scope.cancel("the test wants it"),
            on_killed=told.append,
        )
    assert scope.cancelled_caught
    assert told == expected


async def test_a_sandbox_is_busy_as_long_as_something_runs(
    sandbox: Sandbox, agent: Agent, nursery: trio.Nursery
) -> None:
    assert not sandbox.is_busy
    nursery.start_soon(sandbox.run, "true")
    _, number, _ = await agent.frame()
    assert sandbox.is_busy
    await agent.exit(number)
    while sandbox.is_busy:
        await trio.lowlevel.checkpoint()
    assert sandbox.session.running == 0


async def test_an_agent_that_never_says_a_word_is_not_waited_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.session.READY_WITHIN", 0.05)
    with trio.fail_after(10), pytest.raises(GoneError, match="did not answer"):
        await Session(agent.theirs).serve()


async def test_an_agent_that_dies_at_once_is_said(agent: Agent, nursery: trio.Nursery) -> None:
    nursery.start_soon(agent.die)
    with trio.fail_after(10), pytest.raises(GoneError, match="ended at once"):
        await Session(agent.theirs).serve()
