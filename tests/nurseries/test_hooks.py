"""Hooks, in a real daemon and with real commands: what they are told, and what becomes of them."""

import json
import resource
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from clarad.automation.definitions import Definitions
from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.runs import run as attempts
from clarad.events import EventType
from clarad.nurseries import hooks as runner
from clarad.nurseries.hooks import UnknownRun
from tests.conftest import Running, Start
from tests.daemon_process import Marker
from tests.machine import task
from tests.receiver import answers, forget_proxies, receiver, verify
from tests.runs import (
    WAIT,
    Found,
    begun,
    have_ended,
    hook_runs,
    stop,
    until_hook_runs,
    with_outcome,
)

SEED = """\
hooks:
  - name: log-startup
    event: gateway:startup
    command: echo "Gateway started"

  - name: notify-errors
    event: tool:error
    command: curl -X POST https://webhook.example.com -d "${CLARA_EVENT_DATA}"
"""

HOSTILE = [
    '"; touch spliced; #',
    "$(touch spliced)",
    "`touch spliced`",
    "'; touch spliced; '",
    "${CLARA_PLATFORM}",
    "two\nlines\nand\ttabs",
    "-n",
    "\\",
    "%s%n",
    "🦀 é \u202e",
]


def hook(tmp_path: Path, command: str = ":", **fields: Any) -> Hook:
    """Return a hook that writes into the test's directory."""
    defaults: Found = {"name": "hook", "events": frozenset({EventType.MESSAGE_RECEIVED})}
    return Hook(**defaults | {"working_dir": tmp_path, "command": command} | fields)


@contextmanager
def refusing(running: Running, when: str) -> Iterator[None]:
    """Have the database refuse something of the runs of hooks within the block."""
    path = running.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as database:
        refuse = "SELECT RAISE(ABORT, 'the disk is full')"
        database.execute(
            f"CREATE TRIGGER full BEFORE {when} ON clarad_hook_runs BEGIN {refuse}; END"
        )
        yield
        database.execute("DROP TRIGGER full")


async def say(running: Running, *contents: str, **fields: Any) -> None:
    """Send messages, each in a channel of its own, and wait until they are answered."""
    peer = await running.node()
    for n, content in enumerate(contents or ("hello",)):
        await peer.ask(f"m{n}", content, channel=f"c{n}", **fields)
    await peer.outcomes_of(*(f"m{n}" for n in range(len(contents or ("hello",)))))


# --- what a hook is told -------------------------------------------------------------------------


async def test_hooks_of_an_older_clara_load_and_run_as_they_are(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "hooks.yaml").write_text(SEED)
    loaded = load_hooks(tmp_path)
    assert loaded.problems == []
    running = await start(Definitions(hooks=loaded.entries))
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["hook"], run["outcome"]) == ("log-startup", "ran")
    assert run["stdout"] == "Gateway started\n"


async def test_a_command_that_names_a_variable_gets_it_from_the_shell(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooks.yaml").write_text(SEED)
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    curl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    running = await start(Definitions(hooks=load_hooks(tmp_path).entries))
    data = {"error": '"; touch spliced; # $(touch spliced)'}
    running.daemon.bus.publish(EventType.TOOL_ERROR, data=data)
    _, run = await until_hook_runs(running, have_ended(2))
    *_, dash_d, sent = run["stdout"].splitlines()
    assert (dash_d, json.loads(sent)) == ("-d", data)
    assert not (tmp_path / "spliced").exists()


async def test_what_an_event_does_not_have_is_not_in_the_environment(
    start: Start, tmp_path: Path
) -> None:
    at_start = hook(tmp_path, "env", events=frozenset({EventType.GATEWAY_STARTUP}))
    running = await start(Definitions(hooks=[at_start]))
    [run] = await until_hook_runs(running, have_ended(1))
    for name in ("NODE_ID", "PLATFORM", "USER_ID", "CHANNEL_ID", "REQUEST_ID", "SESSION_ID"):
        assert f"CLARA_{name}=" not in run["stdout"]
    assert f"CLARA_PORT={running.port}\n" in run["stdout"]


async def test_a_hook_has_variables_of_its_own_and_knows_what_led_to_it(
    start: Start, tmp_path: Path
) -> None:
    command = 'echo "$COLOUR $CLARA_RUN $CLARA_ATTEMPT $CLARA_CAUSED_BY"'
    own = hook(tmp_path, command, events=frozenset({EventType.TOOL_END}), env={"COLOUR": "a $b"})
    running = await start(Definitions(hooks=[own]))
    running.daemon.bus.publish(EventType.TOOL_END, caused_by=("task-1", "hook-2"))
    [run] = await until_hook_runs(running, have_ended(1))
    assert run["stdout"] == f"a $b {run['run_id']} 1 task-1 hook-2 {run['run_id']}\n"
    assert run["caused_by"] == "task-1 hook-2"


async def test_a_command_has_the_event_in_its_environment_and_on_its_standard_input(
    start: Start, tmp_path: Path
) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path, "env -0; printf '='; cat")]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    # The store keeps no NUL, so the variables are told apart by their names.
    event = json.loads(run["event"])
    for name in ("node_id", "platform", "user_id", "channel_id", "request_id", "session_id"):
        assert f"CLARA_{name.upper()}={event[name]}" in run["stdout"]
    assert f"CLARA_EVENT_ID={event['id']}" in run["stdout"]
    assert "CLARA_EVENT_TYPE=message:received" in run["stdout"]
    assert "CLARA_CONTENT=hello" in run["stdout"]
    assert 'CLARA_EVENT_DATA={"content":"hello"}' in run["stdout"]
    assert f"CLARA_RUN={run['run_id']}" in run["stdout"]
    assert json.loads(run["stdout"][run["stdout"].rindex("={") + 1 :]) == event


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_what_a_user_is_called_and_says_is_data(
    start: Start, tmp_path: Path, hostile: str
) -> None:
    command = 'printf %s "$CLARA_USER_ID" > user; printf %s "${CLARA_CONTENT}" > content'
    running = await start(Definitions(hooks=[hook(tmp_path, command)]))
    await say(running, hostile, user={"id": hostile, "platform_id": "u"})
    await until_hook_runs(running, have_ended(1))
    assert (tmp_path / "user").read_text() == hostile
    assert (tmp_path / "content").read_text() == hostile
    assert not (tmp_path / "spliced").exists()


@pytest.mark.parametrize("text", ["$(x)" * 250_000, "before\0after"], ids=["1 MB", "NUL"])
async def test_what_does_not_fit_into_the_environment_is_whole_on_standard_input(
    start: Start, tmp_path: Path, text: str
) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path, "cat > event.json")]))
    await say(running, text)
    [run] = await until_hook_runs(running, have_ended(1))
    assert run["outcome"] == "ran"
    assert json.loads((tmp_path / "event.json").read_text())["data"]["content"] == text


async def test_a_hook_need_not_read_what_it_is_given(start: Start, tmp_path: Path) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path, "exec <&-; echo done")]))
    await say(running, "x" * 1_000_000)
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["stdout"]) == ("ran", "done\n")


async def test_a_hook_runs_for_the_events_that_match(start: Start, tmp_path: Path) -> None:
    matching = [
        hook(tmp_path, name="all", events=frozenset({EventType.MESSAGE_SENT})),
        hook(tmp_path, name="platform", match={"platform": "te*"}),
        hook(tmp_path, name="data", match={"content": "hel?o"}),
        hook(tmp_path, name="another platform", match={"platform": "discord"}),
        hook(tmp_path, name="one of two", match={"platform": "test", "content": "bye"}),
        hook(tmp_path, name="off", enabled=False),
    ]
    running = await start(Definitions(hooks=matching))
    await say(running)
    found = await until_hook_runs(running, have_ended(3))
    assert {run["hook"] for run in found} == {"all", "platform", "data"}


async def test_a_hook_can_want_several_events_and_patterns(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hooks.yaml").write_text(
        "hooks: [{name: several, event: [adapter:connected, 'message:*'], command: ':'}]"
    )
    running = await start(Definitions(hooks=load_hooks(tmp_path).entries))
    await say(running)
    found = await until_hook_runs(running, have_ended(3))
    assert [run["event_type"] for run in found] == [
        "adapter:connected",
        "message:received",
        "message:sent",
    ]


# --- beside the gateway --------------------------------------------------------------------------


async def test_a_hook_that_hangs_delays_no_message_and_no_other_hook(
    start: Start, tmp_path: Path, marker: Marker
) -> None:
    hanging = hook(tmp_path, f"sleep {marker.text}", name="hangs", timeout=1000)
    other = hook(tmp_path, name="other")
    running = await start(Definitions(hooks=[hanging, other]), drain_timeout=0)
    await say(running, "one", "two", "three")
    found = await until_hook_runs(running, lambda found: with_outcome(found, "ran") == 3)
    assert [run["outcome"] for run in found if run["hook"] == "hangs"] == [None] * 3


@pytest.mark.usefixtures("_hasty")
async def test_at_its_timeout_a_run_ends_with_all_that_it_has_started(
    clock: MockClock, start: Start, tmp_path: Path, marker: Marker
) -> None:
    stubborn = f"trap '' TERM; echo here; sleep {marker.text}"
    command = f'trap "" TERM; setsid sh -c "{stubborn}" & wait'
    running = await start(Definitions(hooks=[hook(tmp_path, command, timeout=20)]))
    await say(running)
    await until_hook_runs(running, lambda _: len(marker.alive) == 3)  # two shells and `sleep`
    clock.jump(20)
    [run] = await until_hook_runs(running, have_ended(1))
    assert run["outcome"] == "timed_out"
    assert run["stdout"] == "here\n"
    assert marker.alive == []


async def test_a_run_that_ends_well_leaves_nothing_behind(
    start: Start, tmp_path: Path, marker: Marker
) -> None:
    command = f"sleep {marker.text} & setsid sleep {marker.text} & echo started"
    running = await start(Definitions(hooks=[hook(tmp_path, command)]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["stdout"]) == ("ran", "started\n")
    assert marker.alive == []


async def test_of_endless_output_the_end_is_kept(start: Start, tmp_path: Path) -> None:
    endless = [
        hook(tmp_path, "yes", name="stdout", timeout=0.5),
        hook(tmp_path, "yes >&2", name="stderr", timeout=0.5),
    ]
    running = await start(Definitions(hooks=endless))
    await say(running, "one", "two")
    for run in await until_hook_runs(running, have_ended(4)):
        stream = run["hook"]
        assert run["outcome"] == "timed_out"
        assert run[stream] == "y\n" * 32 * 1024
        assert run[f"{stream}_cut"] > 0


async def test_much_output_takes_no_memory_and_it_is_said_how_much_there_was(
    start: Start, tmp_path: Path
) -> None:
    much = 200_000_000
    running = await start(Definitions(hooks=[hook(tmp_path, f"yes | head -c {much}; echo end")]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    assert run["outcome"] == "ran"
    assert run["stdout"].endswith("end\n")
    assert run["stdout_cut"] == much + len("end\n") - 64 * 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < much / 4


# --- order ---------------------------------------------------------------------------------------


async def test_higher_priorities_are_tried_before_lower_ones_even_if_they_fail(
    start: Start, tmp_path: Path
) -> None:
    def at(name: str, priority: int, status: int = 0) -> Hook:
        command = f"echo {name} >> order; exit {status}"
        return hook(tmp_path, command, name=name, priority=priority, retries=int(status != 0))

    hooks = [at("last", -1), at("first", 10, status=1), at("second", 0)]
    running = await start(Definitions(hooks=hooks))
    await say(running)
    await until_hook_runs(running, have_ended(3))
    assert (tmp_path / "order").read_text().split() == ["first", "second", "last", "first"]


async def test_runs_of_equal_priority_go_on_side_by_side(start: Start, tmp_path: Path) -> None:
    one = hook(tmp_path, "touch a; until [ -e b ]; do sleep 0.01; done", name="one")
    other = hook(tmp_path, "touch b; until [ -e a ]; do sleep 0.01; done", name="other")
    running = await start(Definitions(hooks=[one, other]))
    await say(running)
    found = await until_hook_runs(running, have_ended(2))
    assert [run["outcome"] for run in found] == ["ran", "ran"]


async def test_with_overlap_queue_runs_follow_each_other_in_the_order_of_the_events(
    start: Start, tmp_path: Path
) -> None:
    command = 'echo "<$CLARA_CONTENT" >> order; sleep 0.02; echo "$CLARA_CONTENT>" >> order'
    running = await start(Definitions(hooks=[hook(tmp_path, command, overlap="queue")]))
    peer = await running.node()
    for n in range(8):
        await peer.ask(f"m{n}", str(n))  # in one channel, so one after the other
    await until_hook_runs(running, have_ended(8))
    assert (tmp_path / "order").read_text().split() == [
        word for n in range(8) for word in (f"<{n}", f"{n}>")
    ]


async def test_with_overlap_skip_an_event_that_comes_meanwhile_is_skipped_and_that_is_said(
    start: Start, tmp_path: Path
) -> None:
    waits = hook(tmp_path, WAIT, overlap="skip")
    running = await start(Definitions(hooks=[waits]))
    await say(running, "one", "two", "three")
    await until_hook_runs(running, lambda found: len(found) == 3)
    (tmp_path / "go").touch()
    found = await until_hook_runs(running, have_ended(3))
    assert sorted(run["outcome"] for run in found) == ["ran", "skipped", "skipped"]
    assert {run["reason"] for run in found} == {None, "overlap: an earlier run of the hook goes on"}


async def test_of_one_hook_so_many_run_at_once_and_the_others_wait(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_PARALLEL", 2)
    waits = hook(tmp_path, WAIT)
    running = await start(Definitions(hooks=[waits]))
    await say(running, *"abcde")
    found = await until_hook_runs(running, lambda found: len(found) == 5)
    assert sum(run["begun_at"] is not None for run in found) == 2
    (tmp_path / "go").touch()
    found = await until_hook_runs(running, have_ended(5))
    assert {run["outcome"] for run in found} == {"ran"}


async def test_of_all_hooks_so_many_run_at_once_but_those_of_the_shutdown_start_all_the_same(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_RUNNING", 2)
    monkeypatch.setattr("clarad.app.daemon.HOOKS_BUDGET", 2.0)
    hooks = [hook(tmp_path, WAIT, name=f"hook-{n}", timeout=1000) for n in range(3)]
    bye = hook(tmp_path, "touch go", name="bye", events=frozenset({EventType.GATEWAY_SHUTDOWN}))
    running = await start(Definitions(hooks=[*hooks, bye]))
    await say(running)
    assert begun(await until_hook_runs(running, lambda found: len(found) == 3)) == 2
    await stop(running)
    after = await start(database_url=running.settings.database_url)
    assert [run["outcome"] for run in await hook_runs(after)] == ["ran"] * 4


async def test_a_long_queue_of_one_hook_leaves_places_to_another(
    start: Start, tmp_path: Path
) -> None:
    hanging = hook(tmp_path, WAIT, name="hangs", timeout=1000, overlap="queue")
    running = await start(Definitions(hooks=[hanging, hook(tmp_path, name="other")]))
    await say(running, *map(str, range(20)))
    found = await until_hook_runs(running, lambda found: with_outcome(found, "ran") == 20)
    assert {run["hook"] for run in found if run["outcome"]} == {"other"}
    (tmp_path / "go").touch()
    await until_hook_runs(running, have_ended(40))


async def test_a_large_event_that_waits_is_read_again_from_the_store(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SMALL_EVENT", 100)
    queue = hook(tmp_path, f"{WAIT}; wc -c", overlap="queue")
    running = await start(Definitions(hooks=[queue]))
    await say(running, *("x" * 100_000 for _ in range(3)))
    await until_hook_runs(running, lambda found: len(found) == 3)
    (tmp_path / "go").touch()
    for run in await until_hook_runs(running, have_ended(3)):
        assert (run["outcome"], int(run["stdout"])) == ("ran", len(run["event"]))


async def test_past_a_bound_a_run_is_skipped_and_can_be_replayed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_ACTIVE", 2)
    waits = hook(tmp_path, WAIT)
    running = await start(Definitions(hooks=[waits]))
    await say(running, *"abc")
    found = await until_hook_runs(running, lambda found: len(found) == 3)
    [skipped] = [run for run in found if run["outcome"] == "skipped"]
    assert skipped["reason"].startswith("overload")
    (tmp_path / "go").touch()
    await until_hook_runs(running, have_ended(3))
    report = await running.daemon.operations.replay_run(skipped["run_id"], (), lambda _: None)
    assert report.outcome == "ran"


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hasty")
async def test_a_run_that_fails_is_tried_again_and_may_succeed(
    start: Start, tmp_path: Path
) -> None:
    command = 'echo "$CLARA_RUN" >> runs; echo "$CLARA_ATTEMPT"; [ "$CLARA_ATTEMPT" = 3 ]'
    running = await start(Definitions(hooks=[hook(tmp_path, command, retries=3)]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"], run["stdout"]) == ("ran", 3, "3\n")
    assert (tmp_path / "runs").read_text().split() == [run["run_id"]] * 3


async def test_a_run_that_waits_for_another_attempt_is_in_nobodys_way(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 1000.0)
    failing = hook(tmp_path, "exit 1", name="fails", priority=1, retries=1, overlap="queue")
    running = await start(Definitions(hooks=[failing, hook(tmp_path, name="next")]))
    await say(running, "one", "two")
    found = await until_hook_runs(running, lambda found: with_outcome(found, "ran") == 2)
    for run in found:
        if run["hook"] == "fails":
            assert (run["outcome"], run["attempts"], run["begun_at"]) == (None, 1, None)
    await stop(running)  # and a stop does not wait for it


@pytest.mark.usefixtures("_hasty")
async def test_after_its_last_attempt_a_run_is_a_dead_letter_with_its_last_words(
    start: Start, tmp_path: Path
) -> None:
    command = "echo why >&2; exit 7"
    running = await start(Definitions(hooks=[hook(tmp_path, command, retries=1)]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"], run["exit_status"]) == ("failed", 2, 7)
    assert (run["reason"], run["stderr"]) == ("exit status 7", "why\n")


async def test_what_cannot_be_started_fails_with_the_reason(start: Start, tmp_path: Path) -> None:
    lost = hook(tmp_path, working_dir=tmp_path / "nowhere")
    running = await start(Definitions(hooks=[lost]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    assert run["outcome"] == "failed"
    assert "nowhere" in run["reason"]


async def test_a_hook_that_causes_its_own_event_stops_after_a_while(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_CHAIN", 2)
    again = f"{sys.executable} -m clarad send again --url $URL"
    echo = hook(tmp_path, again)
    running = await start()
    running.daemon._hooks.replace([msgspec.structs.replace(echo, env={"URL": running.url})])
    await say(running)
    found = await until_hook_runs(running, have_ended(3))
    assert [run["outcome"] for run in found] == ["ran", "ran", "skipped"]
    assert [len(run["caused_by"].split()) for run in found] == [0, 1, 2]


async def test_runs_that_a_node_makes_up_keep_no_hook_from_running(
    start: Start, tmp_path: Path
) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path)]))
    for node_id in ("a", "b"):
        peer = await running.connect()
        over = [run["run_id"] for run in await hook_runs(running)]
        await peer.register(node_id, caused_by=[*(f"hook-{n}" for n in range(8)), *over])
        await peer.ask(f"m-{node_id}", channel=node_id)
        await peer.outcome_of(f"m-{node_id}")
        await until_hook_runs(running, have_ended(1 + len(over)))
    found = await hook_runs(running)
    assert [(run["outcome"], run["caused_by"]) for run in found] == [("ran", "")] * 2


async def test_an_event_that_others_led_to_starts_hooks_until_there_are_too_many(
    start: Start, tmp_path: Path
) -> None:
    running = await start(
        Definitions(hooks=[hook(tmp_path, events=frozenset({EventType.TOOL_END}))])
    )
    for length in (7, 8, 9):
        led = tuple(f"hook-{n}" for n in range(length))
        running.daemon.bus.publish(EventType.TOOL_END, caused_by=led)
    found = await until_hook_runs(running, have_ended(3))
    assert [run["outcome"] for run in found] == ["ran", "skipped", "skipped"]
    assert found[1]["reason"] == "loop: 8 runs have led to each other"


async def test_a_task_that_a_hook_on_tasks_runs_is_no_way_out_of_a_loop(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_CHAIN", 3)
    again = hook(
        tmp_path,
        f"{sys.executable} -m clarad tasks run t",
        events=frozenset({EventType.SCHEDULER_TASK_RUN}),
        env={"CLARA_STATE_DIR": f"{tmp_path}/state-0"},
    )
    once = task(type="one_shot", delay=0.0, overlap="queue")
    running = await start(Definitions(hooks=[again], tasks=[once]))
    first, last = await until_hook_runs(running, have_ended(2))
    assert (first["outcome"], last["outcome"]) == ("ran", "skipped")
    assert last["reason"].startswith("loop")
    assert last["caused_by"].split()[:2] == [first["caused_by"], first["run_id"]]


async def test_a_replay_from_within_a_run_is_no_way_out_of_a_loop(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_CHAIN", 1)
    again = hook(
        tmp_path,
        f'{sys.executable} -m clarad hooks replay "$CLARA_RUN"',
        env={"CLARA_STATE_DIR": f"{tmp_path}/state-0"},
    )
    running = await start(Definitions(hooks=[again]))
    await say(running)
    first, last = await until_hook_runs(running, have_ended(2))
    assert (last["replay_of"], last["caused_by"]) == (first["run_id"], first["run_id"])
    assert last["outcome"] == "skipped"
    assert last["reason"].startswith("loop")


# --- replays -------------------------------------------------------------------------------------


async def test_a_replay_has_the_event_that_the_run_had(start: Start, tmp_path: Path) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path, "cat; exit 1")]))
    await say(running)
    [failed] = await until_hook_runs(running, have_ended(1))
    replayed = await running.daemon._hooks.replay(failed["run_id"])
    await replayed.ended.wait()
    _, again = await hook_runs(running)
    assert (again["run_id"], again["replay_of"]) == (replayed.run_id, failed["run_id"])
    assert (again["event_id"], again["stdout"]) == (failed["event_id"], failed["stdout"])


async def test_a_replay_that_has_to_wait_knows_what_led_to_it(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SMALL_EVENT", 10)
    queue = hook(tmp_path, f'{WAIT}; echo "$CLARA_CAUSED_BY"', overlap="queue")
    running = await start(Definitions(hooks=[queue]))
    await say(running)
    [first] = await until_hook_runs(running, lambda found: len(found) == 1)
    await running.daemon._hooks.replay(first["run_id"], caused_by=["task-1", "hook-2"])
    (tmp_path / "go").touch()
    _, again = await until_hook_runs(running, have_ended(2))
    assert again["stdout"] == f"task-1 hook-2 {again['run_id']}\n"


async def test_what_cannot_be_replayed_is_refused_with_the_reason(
    start: Start, tmp_path: Path
) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path)]))
    await say(running)
    [run] = await until_hook_runs(running, have_ended(1))
    with pytest.raises(UnknownRun, match="there is no run 'x'"):
        await running.daemon._hooks.replay("x")
    running.daemon._hooks.replace([])
    with pytest.raises(UnknownRun, match="'hook' of this run was removed"):
        await running.daemon._hooks.replay(run["run_id"])


# --- webhooks ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_hasty")
async def test_a_webhook_that_is_turned_away_is_posted_again_and_signed_anew(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_proxies(monkeypatch)
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    async with receiver(answers(503)) as server:
        (tmp_path / "hooks.yaml").write_text(
            "hooks: [{name: post, type: webhook, event: 'message:received', secret: "
            f"{secret}, url: {server.url}, headers: {{X-Source: clarad}}}}]"
        )
        running = await start(Definitions(hooks=load_hooks(tmp_path).entries))
        turned_away = answers(503)

        async def answer(stream: trio.abc.Stream) -> None:
            last = len(server.requests) == 3
            await (answers(200, body=b"thank you") if last else turned_away)(stream)

        server.answer = answer
        await say(running)
        [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"], run["stdout"]) == ("ran", 3, "thank you")
    for request in server.requests:
        verify(secret, request)
        assert request.headers["webhook-id"] == run["run_id"]
        assert request.headers["x-source"] == "clarad"
        assert json.loads(request.body) == json.loads(run["event"])


@pytest.mark.usefixtures("_hasty")
async def test_a_webhook_that_is_refused_is_a_dead_letter_at_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_proxies(monkeypatch)
    async with receiver(answers(410, body=b"gone")) as server:
        post = hook(tmp_path, type="webhook", url=server.url, retries=3)
        running = await start(Definitions(hooks=[post]))
        await say(running)
        [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], run["attempts"], run["stdout"]) == ("failed", 1, "gone")
    assert "410" in run["reason"]


# --- the store fails -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_hasty")
async def test_while_the_store_fails_runs_wait_and_then_happen_once(
    start: Start, tmp_path: Path
) -> None:
    count = hook(tmp_path, 'echo "$CLARA_CONTENT" >> order', overlap="queue")
    running = await start(Definitions(hooks=[count]))
    with refusing(running, "INSERT"):
        await say(running, "one", "two")
        assert await hook_runs(running) == []
        assert not (tmp_path / "order").exists()
    found = await until_hook_runs(running, have_ended(2))
    assert [run["outcome"] for run in found] == ["ran", "ran"]
    assert sorted((tmp_path / "order").read_text().split()) == ["one", "two"]


@pytest.mark.usefixtures("_hasty")
async def test_how_a_run_ended_is_written_once_the_store_works_again(
    start: Start, tmp_path: Path
) -> None:
    running = await start(Definitions(hooks=[hook(tmp_path, "echo once >> times; touch done")]))
    with refusing(running, "UPDATE"):
        await say(running)
        with trio.fail_after(30):
            while not (tmp_path / "done").exists():
                await trio.sleep(0.01)
        [run] = await hook_runs(running)
        assert (run["outcome"], run["ended_at"]) == (None, None)
    [run] = await until_hook_runs(running, have_ended(1))
    assert (run["outcome"], (tmp_path / "times").read_text()) == ("ran", "once\n")


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("when", ["INSERT", "UPDATE"])
async def test_a_stop_does_not_wait_for_ever_for_a_store_that_fails(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr("clarad.app.daemon.CANCEL_BUDGET", 0.2)
    monkeypatch.setattr("clarad.app.daemon.HOOKS_BUDGET", 0.2)
    running = await start(Definitions(hooks=[hook(tmp_path)]))
    with refusing(running, when):
        await say(running)
        await stop(running)
    after = await start(database_url=running.settings.database_url)
    outcomes = [run["outcome"] for run in await hook_runs(after)]
    assert outcomes == ([] if when == "INSERT" else ["interrupted"])


# --- stops and starts ----------------------------------------------------------------------------


async def test_hooks_of_the_shutdown_run_before_the_daemon_is_gone(
    start: Start, tmp_path: Path
) -> None:
    bye = hook(tmp_path, "sleep 0.2; touch bye", events=frozenset({EventType.GATEWAY_SHUTDOWN}))
    running = await start(Definitions(hooks=[bye]))
    await stop(running)
    after = await start(database_url=running.settings.database_url)
    assert [run["outcome"] for run in await hook_runs(after)] == ["ran"]
    assert (tmp_path / "bye").exists()


async def test_a_shutdown_waits_only_so_long_for_hooks(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: Marker
) -> None:
    monkeypatch.setattr("clarad.app.daemon.HOOKS_BUDGET", 0.2)
    running = await start(Definitions(hooks=[hook(tmp_path, f"sleep {marker.text}")]))
    await say(running)
    await until_hook_runs(running, lambda found: bool(marker.alive))
    await stop(running)
    assert marker.alive == []
    after = await start(database_url=running.settings.database_url)
    [run] = await hook_runs(after)
    assert (run["outcome"], run["reason"]) == ("cancelled", "the daemon is stopping")


async def test_what_waits_when_the_daemon_stops_is_run_by_its_next_start(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: Marker
) -> None:
    monkeypatch.setattr("clarad.app.daemon.HOOKS_BUDGET", 0.0)
    first = f'[ "$CLARA_CONTENT" != 0 ] || exec sleep {marker.text}'
    command = first + '; echo "$CLARA_CONTENT" >> order'
    slow = hook(tmp_path, command, overlap="queue")
    running = await start(Definitions(hooks=[slow]))
    peer = await running.node()
    for n in range(3):
        await peer.ask(f"m{n}", str(n))
    await peer.outcomes_of("m0", "m1", "m2")
    await until_hook_runs(running, lambda found: len(found) == 3)
    await stop(running)
    after = await start(Definitions(hooks=[slow]), database_url=running.settings.database_url)
    found = await until_hook_runs(after, have_ended(3))
    assert [run["outcome"] for run in found] == ["cancelled", "ran", "ran"]
    assert (tmp_path / "order").read_text().split() == ["1", "2"]


async def test_what_waits_for_a_hook_that_is_gone_is_skipped(start: Start, tmp_path: Path) -> None:
    waits = hook(tmp_path, WAIT, overlap="queue")
    running = await start(Definitions(hooks=[waits]))
    await say(running, "one", "two")
    await until_hook_runs(running, lambda found: len(found) == 2)
    running.daemon._hooks.replace([])
    (tmp_path / "go").touch()
    found = await until_hook_runs(running, have_ended(2))
    assert sorted(run["outcome"] for run in found) == ["ran", "skipped"]


async def test_hooks_of_what_a_stop_ends_run_too(start: Start, tmp_path: Path) -> None:
    wanted = ("adapter:disconnected", "session:end", "message:cancelled", "gateway:shutdown")
    running = await start(
        Definitions(hooks=[hook(tmp_path, events=frozenset(map(EventType, wanted)))]),
        drain_timeout=0.05,
    )
    peer = await running.node()
    await peer.ask("m1", "hold")
    await running.responder.begun["m1"].wait()
    running.daemon.request_stop()
    assert await peer.close_code() == 1001
    await peer.drop()
    await stop(running)
    after = await start(database_url=running.settings.database_url)
    found = await hook_runs(after)
    assert sorted(run["event_type"] for run in found) == sorted(wanted)
    assert {run["outcome"] for run in found} == {"ran"}


async def test_after_a_kill_what_ran_is_interrupted_and_what_waited_runs(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: Marker
) -> None:
    monkeypatch.setattr(runner, "SMALL_EVENT", 100)
    slow = hook(tmp_path, f"sleep {marker.text}", name="slow", overlap="queue")
    again = msgspec.structs.replace(slow, name="again", overlap="parallel", retries=1)
    gone = msgspec.structs.replace(slow, name="gone")
    before = await start(Definitions(hooks=[slow, again, gone]))
    await say(before, "x" * 1000, "y" * 1000)
    await until_hook_runs(before, lambda found: len(found) == 6 and begun(found) == 4)
    # On the same database, as if the first had been killed.
    hooks = [msgspec.structs.replace(each, command="cat") for each in (slow, again)]
    after = await start(Definitions(hooks=hooks))
    found = await until_hook_runs(after, have_ended(6))
    ends = {
        name: [run for run in found if run["hook"] == name] for name in ("slow", "again", "gone")
    }
    assert [run["outcome"] for run in ends["slow"]] == ["interrupted", "ran"]
    assert [run["outcome"] for run in ends["gone"]] == ["interrupted", "skipped"]
    assert [(run["outcome"], run["attempts"]) for run in ends["again"]] == [("ran", 2)] * 2
    for run in [ends["slow"][1], *ends["again"]]:
        assert json.loads(run["stdout"]) == json.loads(run["event"])


async def test_after_a_kill_priorities_still_count(
    start: Start, tmp_path: Path, marker: Marker
) -> None:
    def at(name: str, priority: int, command: str) -> Hook:
        return hook(tmp_path, f"{command}; echo {name} >> order", name=name, priority=priority)

    hang = f"sleep {marker.text}"
    before = await start(Definitions(hooks=[at("a", 2, hang), at("b", 1, ":"), at("c", 0, ":")]))
    await say(before)
    await until_hook_runs(before, lambda found: len(found) == 3)
    after = await start(
        Definitions(hooks=[at("a", 2, ":"), at("b", 1, "sleep 0.1"), at("c", 0, ":")])
    )
    found = await until_hook_runs(after, have_ended(3))
    assert [run["outcome"] for run in found] == ["interrupted", "ran", "ran"]
    assert (tmp_path / "order").read_text().split() == ["b", "c"]


async def test_what_waits_runs_as_its_hook_is_by_then_and_what_runs_goes_on(
    start: Start, tmp_path: Path
) -> None:
    queue = hook(tmp_path, f"{WAIT}; echo old", overlap="queue")
    running = await start(Definitions(hooks=[queue]))
    await say(running, "one", "two")
    await until_hook_runs(running, lambda found: len(found) == 2)
    running.daemon._hooks.replace([msgspec.structs.replace(queue, command="echo new")])
    (tmp_path / "go").touch()
    found = await until_hook_runs(running, have_ended(2))
    assert sorted(run["stdout"] for run in found) == ["new\n", "old\n"]


async def test_hooks_that_failed_serve_again_and_lose_nothing(start: Start, tmp_path: Path) -> None:
    async def fail() -> None:
        raise RuntimeError("as the test wants it")

    slow = hook(tmp_path, f"echo $CLARA_CONTENT >> order; {WAIT}", overlap="queue")
    quick = hook(tmp_path, "echo quick >> order", name="quick", match={"content": "three"})
    running = await start(Definitions(hooks=[slow, quick]))
    await say(running, "one", "two")
    order = tmp_path / "order"
    await until_hook_runs(running, lambda _: order.exists() and order.read_text() == "one\n")
    nursery = running.daemon._hooks._nursery
    assert nursery is not None
    nursery.start_soon(fail)
    await until_hook_runs(running, lambda found: found[0]["outcome"] == "cancelled")
    running.daemon.bus.publish(EventType.MESSAGE_RECEIVED, data={"content": "three"})
    (tmp_path / "go").touch()
    found = await until_hook_runs(running, have_ended(4))
    assert [run["outcome"] for run in found] == ["cancelled", "ran", "ran", "ran"]
    assert sorted(order.read_text().split()) == ["one", "quick", "three", "two"]
