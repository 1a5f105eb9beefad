"""`clarad hooks`: what runs on events, for people and for programs, with a daemon and without."""

import json
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Final

import pytest

from clarad.store import engine
from tests.daemon_process import PATIENCE, Marker
from tests.installation import STEERING, Console, Installation, no_daemon, refused
from tests.postgres import BACKENDS, database
from tests.unprivileged import unprivileged

HOOKS: Final = r"""
- name: greet
  event: gateway:startup
  command: echo hello; echo careful >&2
  priority: 1
- name: steer
  event: gateway:startup
  command: printf 'a\033[31mred\233\302\205\302\2331m\177\r\b\007\n'; exit 3
- name: post
  event: gateway:startup
  type: webhook
  url: http://127.0.0.1:1/nobody
  headers: {Authorization: the-token}
  secret: whsec_VGhpcyBpcyBhbiBleGFtcGxlLCBub3QgYSBzZWNyZXQu
  retries: 0
- name: long
  event: gateway:startup
  command: yes | head -c 70000
- name: mendable
  event: gateway:startup
  command: test -e mended
- name: several
  event: session:*
  match: {platform: discord}
  command: cat
- name: "off"
  event: message:received
  command: echo done all the same
  enabled: false
"""


NAMES: Final = ["greet", "steer", "post", "long", "mendable", "several", "off"]

STARTED: Final = (
    "hook greet ran",
    "hook steer failed",
    "hook post failed",
    "hook long ran",
    "hook mendable failed",
    "task tick ran",
)
"""What its log says when the start of a daemon has run its hooks."""


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A daemon that runs, and whose start has run its hooks."""
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.write(hooks=HOOKS, tasks="- {name: tick, interval: 3600, command: echo tock}")
    with made.daemon() as process:
        for text in STARTED:
            process.wait_for_log(text)
        yield made


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a daemon has left that has run its hooks and was stopped."""
    made = Installation(tmp_path_factory.mktemp("history"))
    made.write(hooks=HOOKS)
    with made.daemon() as process:
        process.wait_for_log("hook greet ran")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    return made.directory


@pytest.fixture
def clarad(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands beside that daemon."""
    return Console(installation, monkeypatch, capsys)


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    """Commands of an installation of the test's own; no daemon runs."""
    made = Installation(tmp_path)
    made.write(hooks=HOOKS)
    return Console(made, monkeypatch, capsys)


@pytest.fixture
def stopped(alone: Console, history: Path) -> Console:
    """Commands where a daemon has run, and does not run any more."""
    shutil.copytree(history, alone.installation.directory, dirs_exist_ok=True)
    return alone


def first_run(clarad: Console, hook: str) -> str:
    """Return the id of the first run of a hook."""
    run: str = clarad("hooks", "runs", "--json", "--hook", hook).rows[-1]["run"]
    return run


# --- list ----------------------------------------------------------------------------------------


def test_list_shows_each_hook_and_how_it_ran_last(clarad: Console) -> None:
    status, out, err = clarad("hooks", "list")
    head, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert head.split() == ["name", "events", "runs", "enabled", "priority", "last", "last", "at"]
    assert [line.split()[0] for line in lines] == NAMES
    greet, steer, post, _, _, several, off = lines
    assert "echo hello; echo careful >&2  " in greet
    assert "  yes      1         ran     20" in greet
    assert "  yes      0         failed  20" in steer
    assert "  POST http://127.0.0.1:1/nobody  " in post
    assert "  session:end, session:start, session:timeout  " in several
    assert off.split()[-4:] == ["no", "0", "-", "-"]


def test_list_as_json_is_an_object_a_line(clarad: Console) -> None:
    status, out, err = clarad("hooks", "list", "--json")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == NAMES
    assert rows[-2]["events"] == ["session:end", "session:start", "session:timeout"]
    assert rows[-2]["match"] == {"platform": "discord"}
    assert [row["enabled"] for row in rows] == [True] * 6 + [False]
    assert [row["last"] for row in rows[1:4]] == ["failed", "failed", "ran"]
    assert [row["last"] for row in rows[-2:]] == [None, None]


def test_what_list_calls_the_last_run_can_be_shown(clarad: Console) -> None:
    row = clarad("hooks", "list", "--json").rows[1]
    [shown] = clarad("hooks", "show", row["last_run"], "--json").rows
    assert (shown["hook"], shown["due_at"]) == ("steer", row["last_at"])


@pytest.mark.parametrize("words", [["list"], ["list", "--json"]], ids=" ".join)
def test_list_keeps_what_is_confidential(clarad: Console, words: list[str]) -> None:
    out = clarad("hooks", *words).out
    assert "whsec_" not in out
    assert "the-token" not in out


def test_a_name_that_test_repeats_cannot_steer_the_terminal(alone: Console) -> None:
    status, out, err = alone("hooks", "test", "a\x1b[31m\x9b")
    assert status == 1
    assert not set(out + err) & set(STEERING)


def test_a_command_of_several_lines_is_one_line_of_the_list(alone: Console) -> None:
    alone.installation.write(
        hooks='- {name: a, event: tool:end, command: "echo 1\\n\\techo \\e[31m"}'
    )
    _, out, _ = alone("hooks", "list")
    assert "echo 1  echo ␛[31m" in out.splitlines()[1]


# --- runs ----------------------------------------------------------------------------------------


def test_runs_are_shown_the_newest_first(clarad: Console) -> None:
    assert clarad("hooks", "replay", first_run(clarad, "greet")).status == 0
    rows = clarad("hooks", "runs", "--json").rows
    assert rows[0]["hook"] == "greet"
    assert rows[0]["replay_of"] is not None
    ended = [row["ended_at"] for row in rows if row["replay_of"] is not None]
    assert ended == sorted(ended, reverse=True)


def test_runs_for_people_have_a_line_each(clarad: Console) -> None:
    status, out, err = clarad("hooks", "runs")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split()[:4] == ["run", "hook", "event", "type"]
    [failed] = [line for line in lines if first_run(clarad, "steer") in line]
    assert "  gateway:startup  " in failed
    assert "  failed  " in failed
    assert failed.endswith("  exit status 3")


def test_a_run_says_everything_of_itself_as_json(clarad: Console) -> None:
    [row] = clarad("hooks", "runs", "--json", "--hook", "steer").rows
    assert row["event_type"] == "gateway:startup"
    assert (row["state"], row["outcome"]) == ("failed", "failed")
    assert (row["reason"], row["attempts"]) == ("exit status 3", 1)
    assert row["due_at"] <= row["begun_at"] <= row["ended_at"]
    assert row["duration"] > 0


def test_runs_can_be_those_of_one_hook(clarad: Console) -> None:
    rows = clarad("hooks", "runs", "--json", "--hook", "greet").rows
    assert {row["hook"] for row in rows} == {"greet"}
    assert clarad("hooks", "runs", "--hook", "nobody") == (0, "none\n", "")


def test_runs_can_be_the_failed_ones(clarad: Console) -> None:
    rows = clarad("hooks", "runs", "--json", "--failed").rows
    assert {row["hook"] for row in rows} >= {"steer", "post"}
    assert {row["outcome"] for row in rows} == {"failed"}


def test_runs_can_be_limited(clarad: Console) -> None:
    assert len(clarad("hooks", "runs", "--json", "--limit", "2").rows) == 2


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5", "1000001", "9" * 5000, "٣"])
def test_a_limit_is_a_number_from_1(clarad: Console, limit: str) -> None:
    status, out, err = clarad("hooks", "runs", f"--limit={limit}")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "clarad hooks runs: error: argument --limit: write a whole number from 1 to 1000000"
    )


# --- show ----------------------------------------------------------------------------------------


def test_show_has_everything_that_is_known_of_a_run(clarad: Console) -> None:
    run = first_run(clarad, "greet")
    status, out, err = clarad("hooks", "show", run)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["run", run]
    for line in (["hook", "greet"], ["outcome", "ran"], ["exit", "status", "0"]):
        assert line in [each.split() for each in lines]
    assert '"type":"gateway:startup"' in out
    assert out.endswith("\n\nstandard output:\nhello\n\nstandard error:\ncareful\n")


def test_show_as_json_is_one_object(clarad: Console) -> None:
    [row] = clarad("hooks", "show", first_run(clarad, "greet"), "--json").rows
    assert (row["stdout"], row["stderr"], row["exit_status"]) == ("hello\n", "careful\n", 0)
    assert json.loads(row["event"])["type"] == "gateway:startup"


def test_what_a_command_has_written_does_not_steer_the_terminal(clarad: Console) -> None:
    status, out, _ = clarad("hooks", "show", first_run(clarad, "steer"))
    assert status == 0
    assert "a␛[31mred" in out
    assert not set(out) & set(STEERING)


def test_json_has_what_a_command_has_written_and_does_not_steer_either(clarad: Console) -> None:
    status, out, _ = clarad("hooks", "show", first_run(clarad, "steer"), "--json")
    assert status == 0
    assert not set(out) & set(STEERING)
    assert json.loads(out)["stdout"] == "a\x1b[31mred\ufffd\x85\x9b1m\x7f\r\b\a\n"


def test_show_says_how_much_of_the_output_was_cut(clarad: Console) -> None:
    out = clarad("hooks", "show", first_run(clarad, "long")).out
    assert f"\nstandard output ({70000 - 64 * 1024} bytes before this were cut):\ny\n" in out


# --- test ----------------------------------------------------------------------------------------


def test_test_runs_a_hook_here_and_shows_what_it_does(alone: Console) -> None:
    assert alone("hooks", "test", "greet") == (0, "hello\n", "careful\nclarad: hook greet ran\n")


def test_test_exits_1_if_the_hook_fails(alone: Console) -> None:
    status, out, err = alone("hooks", "test", "steer")
    assert (status, err) == (1, "clarad: hook steer failed: exit status 3\n")
    assert out.startswith("a␛[31mred")
    assert not set(out) & set(STEERING)


def test_what_test_says_begins_a_line_of_its_own(alone: Console) -> None:
    alone.installation.write(
        hooks="- {name: a, event: tool:end, command: printf out; printf err >&2}"
    )
    assert alone("hooks", "test", "a") == (0, "out\n", "err\nclarad: hook a ran\n")


def test_test_writes_nothing_down(clarad: Console, alone: Console) -> None:
    before = clarad("hooks", "runs", "--json")
    assert clarad("hooks", "test", "greet").status == 0
    assert clarad("hooks", "runs", "--json") == before
    assert alone("hooks", "test", "greet").status == 0
    assert not alone.installation.state_dir.exists()


def test_test_runs_a_disabled_hook_too(alone: Console) -> None:
    assert alone("hooks", "test", "off").out == "done all the same\n"


def test_the_made_up_event_is_one_of_the_hook_s(alone: Console) -> None:
    status, out, _ = alone("hooks", "test", "several")
    event = json.loads(out)
    assert status == 0
    assert event["type"].startswith("session:")
    assert event["platform"] == "discord"
    assert None not in event.values()


def test_the_event_may_come_from_a_file(alone: Console) -> None:
    event = {"type": "session:end", "user_id": "u-1", "data": {"reason": "gone"}}
    path = alone.installation.directory / "event.json"
    path.write_text(json.dumps(event))
    status, out, _ = alone("hooks", "test", "several", "--event", str(path))
    found = json.loads(out)
    assert status == 0
    assert found | event == found
    assert found["platform"] == "discord"  # is not in the file, and so made up


def test_the_event_of_an_earlier_run_is_one_that_test_takes(
    clarad: Console, alone: Console
) -> None:
    [row] = clarad("hooks", "show", first_run(clarad, "greet"), "--json").rows
    path = alone.installation.directory / "event.json"
    path.write_text(row["event"])
    _, out, _ = alone("hooks", "test", "several", "--event", str(path))
    assert json.loads(out) == json.loads(row["event"])


@pytest.mark.parametrize("user", ['"; touch bad #', "$(touch bad)", "`touch bad`", "a\x1b[31m"])
def test_what_the_event_says_is_data(alone: Console, user: str) -> None:
    alone.installation.write(
        hooks="""- {name: a, event: tool:end, command: 'printf "%s\\n" "${CLARA_USER_ID}"'}"""
    )
    path = alone.installation.directory / "event.json"
    path.write_text(json.dumps({"user_id": user}))
    status, out, _ = alone("hooks", "test", "a", "--event", str(path))
    assert (status, out) == (0, user.replace("\x1b", "␛") + "\n")
    assert not (alone.installation.directory / "bad").exists()


GARBAGE: Final = {
    "empty": b"",
    "not JSON": b"event: tool:error",
    "not UTF-8": b'{"user_id": "\xff"}',
    "not text": bytes(range(256)),
    "a list": b"[1, 2]",
    "deep lists": b'{"data": ' + b"[" * 100_000,
    "deep objects": b'{"data":' * 100_000,
    "an unknown type": b'{"type": "tool:\\u001b[31m"}',
    "a time that is none": b'{"timestamp": "yesterday"}',
    "a number for a text": b'{"user_id": 5}',
    "half a surrogate pair": b'{"user_id": "\\ud800"}',
    "two events": b"{}\n{}",
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_a_file_that_holds_no_event_is_one_line_and_exit_1(alone: Console, text: bytes) -> None:
    path = alone.installation.directory / "event.json"
    path.write_bytes(text)
    status, out, err = alone("hooks", "test", "greet", "--event", str(path))
    assert (status, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith(f"clarad: {path} is not an event as hooks get it: ")
    assert not set(err) & set(STEERING)


def test_a_file_that_cannot_be_read_is_one_line_and_exit_1(alone: Console, tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        answer = refused(f"cannot read {path}: {why}")
        assert alone("hooks", "test", "greet", "--event", str(path)) == answer


def test_a_file_that_others_may_not_read_is_one_line_and_exit_1(alone: Console) -> None:
    secret = alone.installation.directory / "event.json"
    secret.touch(0)
    hooks = alone.installation.directory / "hooks.yaml"
    hooks.chmod(0o644)
    for place in (secret, *secret.parents[:3]):
        assert place.stat().st_uid == os.getuid()
    with _open_to_all(alone.installation.directory), unprivileged():
        answer = alone("hooks", "test", "greet", "--event", str(secret))
    assert answer == refused(f"cannot read {secret}: Permission denied")


@contextmanager
def _open_to_all(directory: Path) -> Iterator[None]:
    """Let everybody through to a directory, as far as its parents are ours."""
    mine = [
        place for place in (directory, *directory.parents) if place.stat().st_uid == os.getuid()
    ]
    before = {place: place.stat().st_mode for place in mine}
    for place in mine:
        place.chmod(before[place] | 0o011)
    try:
        yield
    finally:
        for place in mine:
            place.chmod(before[place])


def test_a_hook_that_is_not_there_is_one_line_and_exit_1(alone: Console) -> None:
    text = "there is no hook 'gret'; `clarad hooks list` lists them"
    assert alone("hooks", "test", "gret") == refused(text)


def test_test_ends_at_the_hook_s_timeout(alone: Console, marker: Marker) -> None:
    command = f"sleep {marker.text}"
    alone.installation.write(
        hooks=f"- {{name: a, event: tool:end, command: {command}, timeout: 0.1}}"
    )
    text = "hook a timed_out: it had not ended within 0.1 s"
    assert alone("hooks", "test", "a") == refused(text)
    assert not marker.alive


def test_what_a_hook_says_while_it_is_ended_is_shown(alone: Console) -> None:
    command = "trap 'echo last words; exit' TERM; while :; do sleep 0.01; done"
    alone.installation.write(
        hooks=f'- {{name: a, event: tool:end, command: "{command}", timeout: 0.3}}'
    )
    status, out, _ = alone("hooks", "test", "a")
    assert (status, out) == (1, "last words\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_test_with_all_that_the_hook_has_started(
    alone: Console, tmp_path: Path, marker: Marker, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "begun")
    alone.installation.write(
        hooks="- name: a\n"
        "  event: tool:end\n"
        f"  command: setsid sleep {marker.text} & echo > begun; wait\n"
        "  timeout: 1000\n"
    )
    with alone.installation.start("hooks", "test", "a") as testing:
        (tmp_path / "begun").read_bytes()
        testing.send_signal(number)
        out, err = testing.communicate(timeout=PATIENCE)
    assert (testing.returncode, out) == (1, "")
    assert err == f"clarad: hook a cancelled: {number.name}\n"
    assert not marker.alive


class Receiver(HTTPServer):
    """Takes one webhook."""

    headers: dict[str, str]
    body: bytes

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert isinstance(self.server, Receiver)
            self.server.headers = dict(self.headers)
            self.server.body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"thank you")

        def log_message(self, *_: object) -> None:
            pass


def test_test_posts_a_webhook(alone: Console) -> None:
    with Receiver(("127.0.0.1", 0), Receiver.Handler) as receiver:
        alone.installation.write(
            hooks="- {name: a, event: tool:end, type: webhook, "
            f"url: 'http://127.0.0.1:{receiver.server_port}/'}}"
        )
        thread = threading.Thread(target=receiver.handle_request)
        thread.start()
        assert alone("hooks", "test", "a") == (0, "thank you\n", "clarad: hook a ran\n")
        thread.join()
    assert json.loads(receiver.body)["type"] == "tool:end"


def test_a_webhook_that_nobody_takes_is_one_line_and_exit_1(alone: Console) -> None:
    text = "hook post failed: cannot connect to http://127.0.0.1:1: Connection refused"
    assert alone("hooks", "test", "post") == refused(text)


# --- replay --------------------------------------------------------------------------------------


def test_replay_runs_a_hook_again_for_the_event_that_it_had(clarad: Console) -> None:
    old = first_run(clarad, "greet")
    status, out, err = clarad("hooks", "replay", old)
    begun, ended = out.splitlines()
    assert (status, err, ended) == (0, "", "hook greet ran")
    new = begun.removeprefix("run ").removesuffix(" has begun")
    [before] = clarad("hooks", "show", old, "--json").rows
    [after] = clarad("hooks", "show", new, "--json").rows
    assert (after["replay_of"], after["outcome"], after["stdout"]) == (old, "ran", "hello\n")
    assert after["event"] == before["event"]


def test_replay_exits_1_if_it_fails_again(clarad: Console) -> None:
    status, out, err = clarad("hooks", "replay", first_run(clarad, "steer"))
    assert (status, err) == (1, "")
    assert out.splitlines()[1] == "hook steer failed: exit status 3"


@pytest.mark.parametrize("run", ["nobody", "a\x1b[31m", "x" * 255])
def test_replay_of_a_run_that_is_not_there_is_one_line_and_exit_1(
    clarad: Console, run: str
) -> None:
    text = f"there is no run {run!r}; `clarad hooks runs` lists them"
    assert clarad("hooks", "replay", run) == refused(text)


def test_the_run_of_a_task_is_not_replayed(clarad: Console) -> None:
    run = clarad("tasks", "runs", "--json").rows[0]["run"]
    text = f"there is no run {run!r}; `clarad hooks runs` lists them"
    assert clarad("hooks", "replay", run) == refused(text)


def test_replay_is_no_way_out_of_a_loop(clarad: Console) -> None:
    chain = " ".join(f"hook-{n}" for n in range(8))
    status, out, _ = clarad("hooks", "replay", first_run(clarad, "greet"), CLARA_CAUSED_BY=chain)
    assert status == 1
    assert "hook greet skipped: loop: " in out


def test_a_dead_letter_is_listed_and_replayed(clarad: Console) -> None:
    dead = first_run(clarad, "mendable")
    assert dead in [row["run"] for row in clarad("hooks", "runs", "--failed", "--json").rows]
    mended = clarad.installation.directory / "mended"
    mended.touch()
    status, out, _ = clarad("hooks", "replay", dead)
    mended.unlink()
    assert (status, out.splitlines()[1]) == (0, "hook mendable ran")


def test_without_a_daemon_replay_is_for_its_next_start(stopped: Console) -> None:
    old = first_run(stopped, "greet")
    status, out, err = stopped("hooks", "replay", old)
    assert (status, err) == (0, "")
    new = out.rpartition(" ")[2].strip()
    assert out == f"no daemon runs; its next start runs this again, as run {new}\n"
    [waiting] = stopped("hooks", "show", new, "--json").rows
    assert (waiting["state"], waiting["replay_of"]) == ("waiting", old)
    with stopped.installation.daemon() as process:
        process.wait_for_log(f"hook greet ran (run {new})")
    assert stopped("hooks", "show", new, "--json").rows[0]["stdout"] == "hello\n"


def test_without_a_daemon_an_unknown_run_is_one_line_and_exit_1(stopped: Console) -> None:
    text = "there is no run 'x' of a hook that is configured; `clarad hooks runs` lists them"
    assert stopped("hooks", "replay", "x") == refused(text)


def test_without_a_database_there_is_no_run_and_none_is_made(alone: Console) -> None:
    text = "there is no run 'x' of a hook that is configured; `clarad hooks runs` lists them"
    assert alone("hooks", "replay", "x") == refused(text)
    assert not alone.installation.state_dir.exists()


def test_without_a_daemon_the_hook_has_to_be_there_and_enabled(stopped: Console) -> None:
    run = first_run(stopped, "greet")
    stopped.installation.write(hooks=HOOKS.replace("name: greet", "name: greeting"))
    text = f"there is no run {run!r} of a hook that is configured; `clarad hooks runs` lists them"
    assert stopped("hooks", "replay", run) == refused(text)
    stopped.installation.write(hooks=HOOKS.replace("priority: 1", "enabled: false"))
    assert stopped("hooks", "replay", run) == refused(text)


def test_replay_over_a_socket_that_is_not_ours_says_whose_it_is(clarad: Console) -> None:
    run = first_run(clarad, "greet")
    path = clarad.installation.state_dir / "control.sock"
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            status, out, err = clarad("hooks", "replay", run)
    finally:
        path.chmod(mode)
    assert (status, out) == (1, "")
    assert err == f"clarad: {path} belongs to {path.owner()}; run this as that user or with sudo\n"


# --- settings ------------------------------------------------------------------------------------


def test_wrong_settings_are_all_named(alone: Console) -> None:
    status, out, err = alone("hooks", "list", CLARA_GATEWAY_PORT="http", CLARA_LOG_LEVEL="loud")
    assert (status, out) == (1, "")
    assert [line.partition("=")[0] for line in err.splitlines()] == [
        "clarad: CLARA_GATEWAY_PORT",
        "clarad: CLARA_LOG_LEVEL",
    ]


# --- databases -----------------------------------------------------------------------------------


def test_a_server_that_does_not_answer_is_one_line_and_exit_1(alone: Console) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # nobody serves it
        url = f"postgresql://me:a-password@127.0.0.1:{silent.server_port}/n?connect_timeout=2"
        assert alone("hooks", "list", DATABASE_URL=url) == refused("connection timeout expired")


def test_a_database_that_is_behind_has_no_runs_yet(stopped: Console) -> None:
    stopped("migrate", "rollback", "--yes")
    assert stopped("hooks", "list").status == 0
    assert stopped("hooks", "runs") == (0, "none\n", "")
    status, out, err = stopped("hooks", "replay", "x")
    assert (status, out, len(err.splitlines())) == (1, "", 1)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that whoever writes to the database needs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def test_who_only_looks_waits_for_nobody(stopped: Console) -> None:
    with locked(stopped.installation.state_dir / "clarad.db"):
        assert stopped("hooks", "list").status == 0
        assert stopped("hooks", "runs").status == 0


def test_replay_into_a_database_that_is_locked_is_one_line_and_exit_1(
    stopped: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.01)
    run = first_run(stopped, "greet")
    with locked(stopped.installation.state_dir / "clarad.db"):
        assert stopped("hooks", "replay", run) == refused("database is locked")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_part_works_on_each_database(
    alone: Console, tmp_path: Path, request: pytest.FixtureRequest, backend: str
) -> None:
    with database(backend, tmp_path, request.config) as url:
        settings = {"DATABASE_URL": url}
        with alone.installation.daemon(**settings) as process:
            process.wait_for_log("hook steer failed")
            [failed] = alone("hooks", "runs", "--hook", "steer", "--json", **settings).rows
            assert alone("hooks", "replay", failed["run"], **settings).status == 1
        assert alone("hooks", "list", "--json", **settings).rows[1]["last"] == "failed"
        assert "a␛[31mred" in alone("hooks", "show", failed["run"], **settings).out
        assert "no daemon runs" in alone("hooks", "replay", failed["run"], **settings).out


# --- where it is printed to ----------------------------------------------------------------------


def test_a_reader_that_had_enough_is_no_error(alone: Console) -> None:
    assert alone.installation.print_to_nobody("hooks", "list") == (
        141,
        no_daemon(alone.installation),
    )


def test_a_disk_that_is_full_is_one_line_and_exit_1(alone: Console) -> None:
    with open("/dev/full", "w") as full:
        status, err = alone.installation.print_to(full, "hooks", "list")
    full_disk = "clarad: cannot write the output: No space left on device\n"
    assert (status, err) == (1, no_daemon(alone.installation) + full_disk)


def test_who_closes_standard_output_sees_nothing_and_it_is_no_error(alone: Console) -> None:
    said = alone.installation.print_to_nothing("hooks", "test", "greet")
    assert said == (0, "careful\nclarad: hook greet ran\n")


def test_a_terminal_that_lacks_a_character_is_no_error(alone: Console) -> None:
    status, out, _ = alone.installation.clarad("hooks", "test", "steer", PYTHONIOENCODING="ascii")
    assert status == 1
    assert "red" in out
