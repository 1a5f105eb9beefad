"""The tools as a model uses them: JSON in, bounded text out."""

import io
import json
import zipfile
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Keeper
from sandbox.tools import MAX_TEXT, TOOLS, Answer
from tests.daemon_process import Marker
from tests.sandbox.conftest import StartKeeper

PATIENCE = 60.0
BY_NAME = {tool.name: tool for tool in TOOLS}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


async def use(keeper: Keeper, name: str, **arguments: Any) -> Answer:
    with trio.fail_after(PATIENCE):
        return await BY_NAME[name](keeper, "somebody", json.dumps(arguments))


# --- the schemas, and what is checked ------------------------------------------------------------


def test_the_tools_are_those_that_are_promised() -> None:
    assert list(BY_NAME) == [
        "execute_python",
        "run_shell",
        "install_package",
        "read_file",
        "write_file",
        "list_files",
        "unzip_file",
    ]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_schema_has_the_form_that_apis_take(name: str) -> None:
    schema = json.loads(json.dumps(BY_NAME[name].schema))
    assert schema["type"] == "function"
    function = schema["function"]
    assert function["name"] == name
    assert function["description"]
    parameters = function["parameters"]
    assert parameters["type"] == "object"
    assert parameters["additionalProperties"] is False
    assert set(parameters["required"]) <= set(parameters["properties"])
    assert all("description" in one for one in parameters["properties"].values())


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("run_shell", "{}", "the argument 'command' is missing"),
        ("run_shell", "not JSON", "Expecting value"),
        ("run_shell", "[]", "must be a JSON object"),
        ("run_shell", '{"command": 1}', "'command' must be a string"),
        ("run_shell", '{"command": ""}', "'command' must have 1 to 100000 characters"),
        ("run_shell", '{"command": "a\\u0000b"}', "cannot hold a NUL"),
        ("run_shell", '{"command": "x", "cmd": "y"}', "no argument 'cmd', but command, timeout"),
        ("run_shell", '{"command": "x", "timeout": 0}', "'timeout' must be from 1 to 3600"),
        ("run_shell", '{"command": "x", "timeout": true}', "'timeout' must be a whole number"),
        ("run_shell", '{"command": "x", "timeout": "9"}', "'timeout' must be a whole number"),
        ("read_file", '{"path": ""}', "'path' must have 1 to 4096 characters"),
    ],
)
async def test_wrong_arguments_are_said_to_the_model(name: str, arguments: str, said: str) -> None:
    nobody = Keeper.__new__(Keeper)  # nothing is asked of it
    answer = await BY_NAME[name](nobody, "somebody", arguments)
    assert answer.failed
    assert said in answer.text


@given(st.sampled_from(TOOLS), json_values)
def test_whatever_json_says_is_taken_or_refused(tool: Any, arguments: object) -> None:
    try:
        checked = tool.check(arguments)
    except ValueError:
        return
    assert checked.keys() <= tool.properties.keys()


# --- the tools -----------------------------------------------------------------------------------


async def test_python_keeps_its_variables(keeper: Keeper) -> None:
    assert await use(keeper, "execute_python", code="x = 20") == Answer("[no output]")
    assert await use(keeper, "execute_python", code="x + 1") == Answer("21")
    failed = await use(keeper, "execute_python", code="x / 0")
    assert failed.failed
    assert "ZeroDivisionError" in failed.text
    assert failed.text.endswith("[exit status 1]")


async def test_a_shell_command_answers_with_all_that_it_said(keeper: Keeper) -> None:
    answer = await use(keeper, "run_shell", command="echo out; echo err >&2; exit 3")
    assert answer.text == "out\n[standard error]\nerr\n[exit status 3]"
    assert answer.failed
    assert answer.remarks == "[exit status 3]"


async def test_a_timeout_is_said(keeper: Keeper) -> None:
    answer = await use(keeper, "execute_python", code="while True: pass", timeout=1)
    assert answer.failed
    assert "[stopped: it took longer than 1 s]" in answer.text
    assert "all variables are gone" in answer.text


async def test_an_answer_is_bounded(keeper: Keeper) -> None:
    answer = await use(keeper, "run_shell", command="seq 1000000")
    assert answer.text.startswith("1\n2\n")
    assert answer.text.endswith("\n1000000")
    assert len(answer.text) < MAX_TEXT + 100


async def test_output_can_be_followed(keeper: Keeper) -> None:
    seen: list[tuple[str, bytes]] = []
    with trio.fail_after(PATIENCE):
        await BY_NAME["run_shell"](
            keeper,
            "somebody",
            {"command": "echo one"},
            on_output=lambda name, data: seen.append((name, data)),
        )
    assert seen == [("stdout", b"one\n")]


async def test_a_cancelled_tool_says_how_many_processes_were_killed(
    keeper: Keeper, marker: Marker
) -> None:
    told: list[int] = []
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        await BY_NAME["run_shell"](
            keeper,
            "somebody",
            {"command": f"sleep {marker.text} & echo; sleep {marker.text}"},
            on_output=lambda *_: scope.cancel("the test wants it"),
            on_killed=told.append,
        )
    assert told[0] >= 2
    assert marker.alive == []


async def test_files_are_written_listed_and_read(keeper: Keeper) -> None:
    written = await use(keeper, "write_file", path="notes/a.txt", content="héllo\n")
    assert written == Answer("7 bytes written to notes/a.txt")
    assert await use(keeper, "read_file", path="notes/a.txt") == Answer("héllo\n")
    listed = await use(keeper, "list_files", path="notes")
    assert listed.text.split() == ["file", "7", "a.txt"]
    assert (await use(keeper, "list_files")).text.split()[::2] == ["directory", "notes"]


async def test_what_cannot_be_read_is_said(keeper: Keeper) -> None:
    for path, said in {
        "nowhere": "No such file or directory",
        "/etc/shadow": "Permission denied",
        "../../etc/shadow": "Permission denied",
        "/proc/1/environ": "Permission denied",
        "/": "not a regular file",
        "/dev/zero": "not a regular file",
    }.items():
        answer = await use(keeper, "read_file", path=path)
        assert answer.failed
        assert said in answer.text


async def test_what_cannot_be_written_is_said(keeper: Keeper) -> None:
    for path in ("/etc/passwd", "../../etc/x", "/proc/sysrq-trigger", "/home/x"):
        answer = await use(keeper, "write_file", path=path, content="x")
        assert answer.failed
        assert "Traceback" not in answer.text


async def test_a_path_does_not_lead_to_the_machine(keeper: Keeper, tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the machine")
    for path in (str(secret), "/proc/1/root" + str(secret), "../../../../.." + str(secret)):
        answer = await use(keeper, "read_file", path=path)
        assert answer.failed
        assert "of the machine" not in answer.text


async def test_an_archive_is_unpacked(keeper: Keeper) -> None:
    sandbox = await keeper.acquire("somebody")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b.txt", "inside")
    await sandbox.write_file("a.zip", buffer.getvalue())
    answer = await use(keeper, "unzip_file", path="a.zip", target="out")
    assert answer == Answer("1 unpacked to out:\na/b.txt")
    assert (await use(keeper, "read_file", path="out/a/b.txt")).text == "inside"


async def test_an_archive_that_leads_elsewhere_is_refused(keeper: Keeper) -> None:
    sandbox = await keeper.acquire("somebody")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../tmp/out", "outside")
    await sandbox.write_file("a.zip", buffer.getvalue())
    answer = await use(keeper, "unzip_file", path="a.zip")
    assert answer.failed
    assert "leads out of the target" in answer.text


WHEEL = {
    "greeting.py": "def greet(): return 'hello'\n",
    "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
    "greeting-1.0.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
    "greeting-1.0.dist-info/RECORD": "",
}


async def test_an_installed_package_can_be_imported_at_once(keeper: Keeper) -> None:
    await use(keeper, "execute_python", code="before = 1")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in WHEEL.items():
            archive.writestr(name, content)
    wheel = "greeting-1.0-py3-none-any.whl"
    await (await keeper.acquire("somebody")).write_file(wheel, buffer.getvalue())
    installed = await use(keeper, "install_package", package=wheel)
    assert not installed.failed, installed.text
    answer = await use(keeper, "execute_python", code="import greeting\ngreeting.greet(), before")
    assert answer == Answer("('hello', 1)")


async def test_a_package_that_cannot_be_fetched_is_said_up_front(keeper: Keeper) -> None:
    answer = await use(keeper, "install_package", package="numpy>=2,<3")
    assert answer.failed
    assert "SANDBOX_NETWORK=internet" in answer.text


@pytest.mark.parametrize(
    "package",
    ["-r requirements.txt", "--index-url=http://x y", "a b", "git+https://x", "a;b", "$x"],
)
async def test_what_is_no_package_is_refused(keeper: Keeper, package: str) -> None:
    answer = await use(keeper, "install_package", package=package)
    assert answer.failed
    assert "is no package" in answer.text


async def test_an_owner_does_not_see_another_owners_files(keeper: Keeper) -> None:
    await use(keeper, "write_file", path="mine", content="secret")
    with trio.fail_after(PATIENCE):
        other = await BY_NAME["list_files"](keeper, "somebody else", {})
    assert other == Answer("[empty]")


async def test_a_sandbox_that_ends_under_a_tool_is_said(start_keeper: StartKeeper) -> None:
    keeper = await start_keeper()
    answers: list[Answer] = []
    running = trio.Event()

    async def run() -> None:
        answers.append(
            await BY_NAME["run_shell"](
                keeper,
                "somebody",
                {"command": "echo; sleep 1000"},
                on_output=lambda *_: running.set(),
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(PATIENCE):
            await running.wait()
            await keeper.delete("somebody")
    assert answers[0].failed
    assert "the next call gets a new one" in answers[0].text
