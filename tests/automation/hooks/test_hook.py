import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clarad.automation.config.entries import Loaded
from clarad.automation.hooks.hook import KIND, Hook, load_hooks
from clarad.events import EventType

relaxed = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

Said = list[tuple[int | None, str]]
Load = Callable[[str], Loaded[Hook]]

SECRET: Final = "whsec_" + base64.b64encode(b"k" * 32).decode()

EXISTING: Final = """\
hooks:
  - name: log-startup
    event: gateway:startup
    command: echo "Gateway started"

  - name: notify-errors
    event: tool:error
    command: curl -X POST https://webhook.example.com -d "${CLARA_EVENT_DATA}"
"""
"""What people have from an older Clara."""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write hooks.yaml and load it."""

    def run(text: str) -> Loaded[Hook]:
        (tmp_path / "hooks.yaml").write_text(text)
        return load_hooks(tmp_path)

    return run


@pytest.fixture
def one(load: Load) -> Callable[[str], Hook]:
    """Load the one hook of a file, from its keys."""

    def run(keys: str) -> Hook:
        loaded = load(indented(keys))
        assert loaded.problems == []
        [hook] = loaded.entries
        return hook

    return run


def indented(keys: str) -> str:
    return "hooks:\n  -\n" + "".join(f"    {line}\n" for line in keys.splitlines())


def said(loaded: Loaded[Hook]) -> Said:
    return [(problem.line, problem.text) for problem in loaded.problems]


# --- good hooks ----------------------------------------------------------------------------------


def test_hooks_of_an_older_clara_are_loaded_unchanged(load: Load, tmp_path: Path) -> None:
    assert load(EXISTING) == Loaded(
        [
            Hook(
                name="log-startup",
                events=frozenset({EventType.GATEWAY_STARTUP}),
                command='echo "Gateway started"',
                working_dir=tmp_path,
            ),
            Hook(
                name="notify-errors",
                events=frozenset({EventType.TOOL_ERROR}),
                command='curl -X POST https://webhook.example.com -d "${CLARA_EVENT_DATA}"',
                working_dir=tmp_path,
            ),
        ],
        [],
    )


@pytest.mark.parametrize("text", ["", "hooks:\n", "hooks: []\n", "# hooks:\n"])
def test_there_may_be_no_hooks(load: Load, text: str) -> None:
    assert load(text) == Loaded([], [])


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert load_hooks(tmp_path) == Loaded([], [])


def test_everything_about_a_command_can_be_written(load: Load, tmp_path: Path) -> None:
    loaded = load(
        """
hooks:
  - name: archive
    description: Keeps what was said.
    type: shell
    event: [message:received, "message:sent"]
    match:
      platform: discord
      user_id: 5
      channel_id: "team-*"
      is_urgent: Yes
    command: |
      cat >> "$ARCHIVE"
    working_dir: archive
    env:
      ARCHIVE: messages.jsonl
      LIMIT: 1.50
      VERBOSE: yes
    timeout: "2.5"
    retries: 4
    priority: -10
    overlap: queue
    enabled: no
"""
    )
    assert loaded.problems == []
    assert loaded.entries == [
        Hook(
            name="archive",
            description="Keeps what was said.",
            events=frozenset({EventType.MESSAGE_RECEIVED, EventType.MESSAGE_SENT}),
            match={
                "platform": "discord",
                "user_id": "5",
                "channel_id": "team-*",
                "is_urgent": "true",
            },
            command='cat >> "$ARCHIVE"\n',
            working_dir=tmp_path / "archive",
            env={"ARCHIVE": "messages.jsonl", "LIMIT": "1.50", "VERBOSE": "yes"},
            timeout=2.5,
            retries=4,
            priority=-10,
            overlap="queue",
            enabled=False,
        )
    ]


def test_everything_about_a_webhook_can_be_written(load: Load, tmp_path: Path) -> None:
    loaded = load(
        f"""
hooks:
  - name: dashboard
    type: webhook
    event: session:start
    url: https://dashboard.example.org/hooks?from=clarad
    headers:
      Authorization: Bearer a-token
      X-Count: 5
      X-Name: Zoë
    secret: {SECRET}
    timeout: 10
    retries: 0
    overlap: skip
"""
    )
    assert loaded.problems == []
    assert loaded.entries == [
        Hook(
            name="dashboard",
            type="webhook",
            events=frozenset({EventType.SESSION_START}),
            url="https://dashboard.example.org/hooks?from=clarad",
            headers={"Authorization": "Bearer a-token", "X-Count": "5", "X-Name": "Zoë"},
            secret=SECRET,
            timeout=10,
            retries=0,
            overlap="skip",
            working_dir=tmp_path,
        )
    ]


def test_a_webhook_is_tried_again_if_nothing_else_is_written(one: Callable[[str], Hook]) -> None:
    assert one("name: a\nevent: tool:end\ncommand: b").retries == 0
    assert one("name: a\nevent: tool:end\ntype: webhook\nurl: http://localhost:1").retries == 3


@pytest.mark.parametrize(
    ("written", "types"),
    [
        ("tool:error", {"tool:error"}),
        ("tool:*", {"tool:start", "tool:end", "tool:error"}),
        ('"*:start*"', {"gateway:startup", "session:start", "tool:start"}),
        ("session:?nd", {"session:end"}),
        ("'[gs]*:s[th][ua]*'", {"gateway:startup", "gateway:shutdown", "session:start"}),
        ("[tool:e*, tool:end, tool:start]", {"tool:start", "tool:end", "tool:error"}),
        ('"*"', set(EventType)),
    ],
)
def test_an_event_is_a_type_or_a_pattern_or_a_list_of_them(
    one: Callable[[str], Hook], written: str, types: set[str]
) -> None:
    found = one(f"name: a\nevent: {written}\ncommand: b").events
    assert found == types
    assert all(isinstance(each, EventType) for each in found)


def test_a_directory_is_that_of_the_file_unless_another_is_written(
    one: Callable[[str], Hook], tmp_path: Path
) -> None:
    rest = "name: a\nevent: tool:end\ncommand: b"
    assert one(rest).working_dir == tmp_path
    assert one(f"{rest}\nworking_dir: ../c").working_dir == tmp_path / "../c"
    assert one(f"{rest}\nworking_dir: /srv").working_dir == Path("/srv")


def test_a_relative_directory_of_hooks_makes_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "hooks.yaml").write_text(EXISTING)
    loaded = load_hooks(Path("hooks"))
    assert {hook.working_dir for hook in loaded.entries} == {tmp_path / "hooks"}


def test_hooks_are_equal_if_their_definitions_are(load: Load) -> None:
    before = load(EXISTING).entries
    assert load(f"# a comment\n{EXISTING}").entries == before
    assert load(EXISTING.replace("Gateway", "Daemon")).entries[0] != before[0]


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_is_base64_of_so_many_bytes(one: Callable[[str], Hook], size: int) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * size).decode()
    webhook = "name: a\nevent: tool:end\ntype: webhook\nurl: http://a"
    assert one(f"{webhook}\nsecret: {secret}").secret == secret
    assert one(f"{webhook}\nsecret: {secret} {SECRET}").secret == f"{secret} {SECRET}"
    assert one(f"{webhook}\nsecret: {secret.rstrip('=')}").secret == secret.rstrip("=")


def test_what_is_confidential_is_not_shown(one: Callable[[str], Hook]) -> None:
    hook = one(
        "name: a\nevent: tool:end\ntype: webhook\nurl: http://a/the-token\n"
        f"secret: {SECRET}\nheaders: {{Authorization: the-password}}"
    )
    assert f"{hook!r}" == "<Hook 'a'>"


# --- bad hooks -----------------------------------------------------------------------------------

SHELL: Final = "name: a\nevent: tool:error\ncommand: b"
WEBHOOK: Final = "name: a\nevent: tool:error\ntype: webhook\nurl: http://a"
ALL_TYPES: Final = ", ".join(EventType)

WHOLE_ADDRESS: Final = "url is not right; write a whole address, such as https://example.org/hook"
NO_SECRET: Final = (
    "secret is not right; write whsec_ and base64 of 24 to 64 bytes; `openssl rand -base64 32` "
    "makes such"
)

WRONG: Final[dict[str, tuple[str, Said]]] = {
    "no event": (
        "name: a\ncommand: b",
        [(3, "this hook has no event; add it, such as event: tool:error")],
    ),
    "events instead of event": (
        "name: a\nevents: tool:error\ncommand: b",
        [(4, "events is not a key of a hook; did you mean event?")],
    ),
    "a misspelled event": (
        "name: a\nevent: tool:eror\ncommand: b",
        [(4, "event is tool:eror; did you mean tool:error?")],
    ),
    "an event in capitals": (
        "name: a\nevent: Gateway:Startup\ncommand: b",
        [(4, "event is Gateway:Startup; did you mean gateway:startup?")],
    ),
    "an event that does not exist": (
        "name: a\nevent: coffee\ncommand: b",
        [(4, f"event is coffee; write one of {ALL_TYPES}, or a pattern such as gateway:*")],
    ),
    "a pattern that matches nothing": (
        "name: a\nevent: tools:*\ncommand: b",
        [(4, "event is tools:*; did you mean tool:*?")],
    ),
    "a pattern like nothing": (
        'name: a\nevent: "*coffee*"\ncommand: b',
        [(4, f'event is "*coffee*"; write one of {ALL_TYPES}, or a pattern such as gateway:*')],
    ),
    "events with commas": (
        "name: a\nevent: tool:start, tool:end\ncommand: b",
        [(4, "event is tool:start, tool:end; write a list: [tool:start, tool:end]")],
    ),
    "one bad event of several": (
        "name: a\nevent:\n  - tool:start\n  - tool:and\ncommand: b",
        [(6, "event is tool:and; did you mean tool:end?")],
    ),
    "no events": (
        "name: a\nevent: []\ncommand: b",
        [(4, "event is an empty list; write one or more, such as tool:error")],
    ),
    "no command": (
        "name: a\nevent: tool:error",
        [(3, 'this hook has no command; add it, such as command: echo "$CLARA_EVENT_TYPE"')],
    ),
    "a misspelled command": (
        "name: a\nevent: tool:error\ncomand: b",
        [(5, "comand is not a key of a hook; did you mean command?")],
    ),
    "an empty command": (
        'name: a\nevent: tool:error\ncommand: " "',
        [(5, 'command is " "; write something')],
    ),
    "true as a command": (
        "name: a\nevent: tool:error\ncommand: true",
        [(5, "command is true; YAML reads that as true or false: put it in quotes")],
    ),
    "a template for a command": (
        "name: a\nevent: tool:error\ncommand: {{ script }}",
        [(5, "command is a mapping; write a text, in quotes if it begins with a bracket")],
    ),
    "a url without the type": (
        "name: a\nevent: tool:error\nurl: http://a",
        [
            (
                5,
                "url is for type: webhook, and this hook has type: shell, as it names none; change "
                "the type, or take url out",
            )
        ],
    ),
    "what commands have": (
        f"{WEBHOOK}\ncommand: b\nenv: {{}}\nworking_dir: /",
        [
            (
                line,
                f"{key} is for type: shell, and this hook has type: webhook; change the type, or "
                f"take {key} out",
            )
            for line, key in ((7, "command"), (8, "env"), (9, "working_dir"))
        ],
    ),
    "what webhooks have": (
        f"{SHELL}\ntype: shell\nheaders: {{}}\nsecret: {SECRET}",
        [
            (
                line,
                f"{key} is for type: webhook, and this hook has type: shell; change the type, or "
                f"take {key} out",
            )
            for line, key in ((7, "headers"), (8, "secret"))
        ],
    ),
    "no url": (
        "name: a\nevent: tool:error\ntype: webhook",
        [(3, "this hook has no url; add it, such as url: https://example.org/hook")],
    ),
    "a type that does not exist": (
        "name: a\nevent: tool:error\ntype: web-hook\nurl: http://a",
        [(5, "type is web-hook; did you mean webhook? write one of shell, webhook")],
    ),
    "a mapping that is none": (
        f"{SHELL}\nmatch: discord\nenv:\n  - A=b",
        [
            (6, "match is discord; write a mapping, such as platform: discord"),
            (8, "env is a list; write a mapping, such as CHANNEL: alerts"),
        ],
    ),
    "a match of several": (
        f"{SHELL}\nmatch:\n  platform: [discord, slack]\n  user_id:",
        [
            (7, "match: platform is not right; write a text"),
            (8, 'match: user_id is not right; write a value, or "" for an empty one'),
        ],
    ),
    "variables that are none": (
        f"{SHELL}\nenv:\n  A-B: c\n  D: {{}}",
        [
            (
                7,
                "env: A-B is not right; write a name of letters, digits and _ that does not begin "
                "with a digit",
            ),
            (8, "env: D is not right; write a text"),
        ],
    ),
    "numbers that are none": (
        f"{SHELL}\ntimeout: 0\nretries: 1000\npriority: high",
        [
            (6, "timeout is 0; write a number of seconds above 0 and below 1e9, such as 30 or 0.5"),
            (7, "retries is 1000; write a whole number from 0 to 100"),
            (8, "priority is high; write a whole number from -1000000 to 1000000"),
        ],
    ),
    "an overlap that does not exist": (
        f"{SHELL}\noverlap: cancel",
        [(6, "overlap is cancel; write one of parallel, queue, skip")],
    ),
    "a switch in quotes": (
        f'{SHELL}\nenabled: "no"',
        [(6, 'enabled is "no"; write true or false, without quotes')],
    ),
    "a description that is a number": (
        f"{SHELL}\ndescription: 5",
        [(6, "description is 5; YAML reads that as a number: put it in quotes")],
    ),
    "headers that are none": (
        f'{WEBHOOK}\nheaders:\n  "X A": b\n  X-B: "c\\nd"\n  X-C: " e"\n  X-D: f\n  x-d: g',
        [
            (
                8,
                "headers: X A is not right; write a name of "
                "letters, digits and -, such as X-Source",
            ),
            (
                9,
                "headers: X-B is not right; write its value on "
                "one line, without spaces at its ends",
            ),
            (
                10,
                "headers: X-C is not right; write its value on "
                "one line, without spaces at its ends",
            ),
            (
                12,
                "headers: x-d is not right; it is here twice, as capitals make no difference: take "
                "one out",
            ),
        ],
    ),
    "headers that are ours": (
        f"{WEBHOOK}\nheaders:\n  Webhook-Id: a\n  Content-Length: 5",
        [
            (
                8,
                "headers: Webhook-Id is not right; the webhook "
                "sets that header itself: take it out",
            ),
            (
                9,
                "headers: Content-Length is not right; the "
                "webhook sets that header itself: take it "
                "out",
            ),
        ],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_hook_that_is_wrong_is_refused_with_its_fix(load: Load, wrong: str) -> None:
    keys, expected = WRONG[wrong]
    loaded = load(indented(keys))
    assert said(loaded) == expected
    assert loaded.entries == []


def test_everything_that_is_wrong_is_said_in_one_go(load: Load) -> None:
    text = "hooks:\n"
    expected = []
    for keys, wrong in WRONG.values():
        line = text.count("\n") - 1
        text += indented(keys).replace("hooks:\n", "").replace("name: a", f"name: hook-{line}")
        expected += [(at + line, sentence) for at, sentence in wrong if at is not None]
    assert said(load(text)) == expected


@pytest.mark.parametrize("wrong", WRONG)
def test_hooks_of_an_older_clara_survive_a_bad_neighbour(load: Load, wrong: str) -> None:
    bad = indented(WRONG[wrong][0])
    loaded = load(bad + EXISTING.removeprefix("hooks:\n"))
    assert loaded.entries == load(EXISTING).entries


@pytest.mark.parametrize(
    "url",
    [
        "example.org/hook",
        "ftp://example.org",
        "file:///etc/passwd",
        "http://",
        "http:///hook",
        "http:/example.org",
        "http://exa mple.org",
        "http://example.org:99999",
        "http://example..org",
        "http://" + "a" * 64,
        "http://[::1",
        '"http://example.org/\\n"',
        "http://example.org/" + "a" * 70_000,
        "http://xn--a/",
        '""',
        "5",
        "[http://example.org]",
    ],
)
def test_what_is_no_address_is_refused_unseen(load: Load, url: str) -> None:
    loaded = load(indented(WEBHOOK.replace("http://a", url)))
    [(line, text)] = said(loaded)
    assert line == 6
    assert text.startswith("url is not right; ")
    assert "example" not in text.removesuffix("such as https://example.org/hook")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080",
        "HTTPS://example.org/a?b=c",
        "http://[::1]:80/",
        "https://user:password@example.org",
        "https://grüße.example/ä",
    ],
)
def test_an_address_is_taken_as_it_is_written(one: Callable[[str], Hook], url: str) -> None:
    assert one(WEBHOOK.replace("http://a", url)).url == url


@pytest.mark.parametrize(
    "secret",
    [
        "hunter2",
        "whsec_hunter2",
        "whsec_",
        SECRET.removeprefix("whsec_"),
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode(),
        f"{SECRET} hunter2",
        f"{SECRET},{SECRET}",
        '" "',
    ],
)
def test_what_is_no_secret_is_refused_unseen(load: Load, secret: str) -> None:
    assert said(load(indented(f"{WEBHOOK}\nsecret: {secret}"))) == [(7, NO_SECRET)]


def test_a_secret_that_is_a_number_is_refused_unseen(load: Load) -> None:
    assert said(load(indented(f"{WEBHOOK}\nsecret: 12345678"))) == [
        (7, "secret is not right; YAML reads that as a number: put it in quotes")
    ]


def test_what_may_be_confidential_is_not_said(load: Load) -> None:
    loaded = load(
        indented(
            f"{WEBHOOK}/hunter2 hunter2\nsecret: [hunter2]\nheaders:\n  A: [hunter2]\n"
            '  B: "hunter2\\n"\n'
        )
    )
    assert len(loaded.problems) == 4
    assert not any("hunter2" in text for _, text in said(loaded))


# --- whatever is written -------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes()
    | st.dates()
)
structures = st.recursive(
    scalars,
    lambda below: st.lists(below) | st.dictionaries(st.text() | scalars, below),
    max_leaves=5,
)
plausible = st.sampled_from(
    ["a", "shell", "webhook", "tool:*", "http://a", SECRET, 5, 0, True, ["tool:end"], {"A": "b"}]
)


@relaxed
@given(st.lists(st.dictionaries(st.sampled_from(KIND.keys), plausible | structures)))
def test_whatever_a_hook_is_it_is_read_or_refused(load: Load, hooks: list[Any]) -> None:
    loaded = load(yaml.safe_dump({"hooks": hooks}))
    assert all(f"{problem}".isprintable() for problem in loaded.problems)
    assert len(loaded.entries) == len(hooks) or loaded.problems


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
words = texts.filter(str.strip)
visible = words.filter(lambda text: text.isprintable() and len(text) <= 255)
times = st.integers(1, 10**8) | st.floats(0.001, 1e8)
common = st.fixed_dictionaries(
    {"name": visible},
    optional={
        "description": texts,
        "timeout": times,
        "enabled": st.booleans(),
        "priority": st.integers(-1_000_000, 1_000_000),
        "retries": st.integers(0, 100),
        "overlap": st.sampled_from(["parallel", "queue", "skip"]),
        "match": st.dictionaries(words, texts),
    },
)
commands = st.fixed_dictionaries(
    {"command": words},
    optional={
        "type": st.just("shell"),
        "env": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), texts),
    },
)
webhooks = st.fixed_dictionaries(
    {"type": st.just("webhook"), "url": st.just("https://example.org/hook")},
    optional={
        "headers": st.dictionaries(
            st.from_regex(r"X-[a-z0-9]+", fullmatch=True),
            st.from_regex(r"[!-~]([ -~]*[!-~])?", fullmatch=True),
        ),
        "secret": st.binary(min_size=24, max_size=64).map(
            lambda key: f"whsec_{base64.b64encode(key).decode()}"
        ),
    },
)


@relaxed
@given(common, commands | webhooks, st.sets(st.sampled_from(EventType), min_size=1))
def test_a_definition_that_is_dumped_is_loaded_again(
    load: Load,
    tmp_path: Path,
    shared: dict[str, Any],
    special: dict[str, Any],
    events: set[EventType],
) -> None:
    keys = shared | special
    loaded = load(yaml.safe_dump({"hooks": [keys | {"event": [f"{each}" for each in events]}]}))
    assert loaded.problems == []
    retries = {"retries": 3} if keys.get("type") == "webhook" else {}
    expected: dict[str, Any] = {"working_dir": tmp_path, "events": frozenset(events)}
    expected |= retries | keys
    assert loaded.entries == [Hook(**expected)]
