"""What a model may be given to use a sandbox: functions with JSON schemas, and bounded answers.

An answer is text for the model, also when something failed: it can correct its call. Only what an
operator has to repair (no engine, all sandboxes taken) is raised.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sandbox.engine import FileError, GoneError, Result
from sandbox.keeper import Keeper
from sandbox.python import MAX_CODE
from sandbox.session import OnOutput

MAX_TEXT: Final = 32_000
"""Characters of an answer."""

DEFAULT_TIMEOUT: Final = 60
MAX_TIMEOUT: Final = 3600
"""Seconds."""

_PACKAGE: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"  # the name, as PEP 508 has it
    r"(?:\[[A-Za-z0-9._, -]+\])?"
    r"(?:\s*(?:===?|[<>!~]=|[<>])\s*[A-Za-z0-9.*+!_-]+\s*,?)*"
    r"|[./\w-]+\.whl",
    re.ASCII,
)


@dataclass(frozen=True)
class Answer:
    """What a tool has to say; `failed` if it did not do what was asked for.

    `remarks` is what the text says beside the output, for who has streamed that already. `lost`
    says that the sandbox has ended under it, with its files.
    """

    text: str
    failed: bool = False
    remarks: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Call:
    """One use of a tool: whose sandbox, with what, and who listens."""

    keeper: Keeper
    owner: str
    arguments: Mapping[str, Any]
    on_output: OnOutput | None = None
    on_killed: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Tool:
    """A function that can be called by name with JSON."""

    name: str
    description: str
    properties: Mapping[str, Mapping[str, Any]]
    required: tuple[str, ...]
    do: Callable[[Call], Awaitable[Answer]]

    @property
    def schema(self) -> dict[str, Any]:
        """The function as OpenAI-compatible APIs want it described."""
        parameters = {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.properties.items()},
            "required": list(self.required),
            "additionalProperties": False,
        }
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
        }
        return {"type": "function", "function": function}

    async def __call__(
        self,
        keeper: Keeper,
        owner: str,
        arguments: str | Mapping[str, Any],
        *,
        on_output: OnOutput | None = None,
        on_killed: Callable[[int], None] | None = None,
    ) -> Answer:
        """Use the tool in the owner's sandbox; `arguments` is JSON, or what JSON says.

        Raises:
            SandboxError: there is no sandbox to be had.

        Cancelling kills what runs; `on_killed` is told how many processes that were.
        """
        try:
            checked = self.check(json.loads(arguments) if isinstance(arguments, str) else arguments)
        except (ValueError, RecursionError) as error:
            return Answer(f"{self.name}: {error}", failed=True, remarks=str(error))
        try:
            answer = await self.do(Call(keeper, owner, checked, on_output, on_killed))
        except (FileError, GoneError) as error:
            lost = isinstance(error, GoneError)
            answer = Answer(str(error), failed=True, remarks=str(error), lost=lost)
        return replace(answer, text=_bounded(answer.text))

    def check(self, arguments: object) -> dict[str, Any]:
        """Return the arguments if they are as the schema says.

        Raises:
            ValueError: saying which is not, and how it should be.
        """
        if not isinstance(arguments, Mapping):
            raise ValueError("the arguments must be a JSON object")
        for name in arguments:
            if name not in self.properties:
                known = ", ".join(self.properties)
                raise ValueError(f"there is no argument {name!r}, but {known}")
        for name in self.required:
            if name not in arguments:
                raise ValueError(f"the argument {name!r} is missing")
        for name, value in arguments.items():
            _check_value(name, value, self.properties[name])
        return dict(arguments)


def _check_value(name: str, value: object, schema: Mapping[str, Any]) -> None:
    if schema["type"] == "string":
        if not isinstance(value, str):
            raise ValueError(f"{name!r} must be a string")
        if not schema.get("minLength", 0) <= len(value) <= schema["maxLength"]:
            least = schema.get("minLength", 0)
            raise ValueError(f"{name!r} must have {least} to {schema['maxLength']} characters")
        if "\0" in value and name != "content":
            raise ValueError(f"{name!r} cannot hold a NUL character")
    elif not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name!r} must be a whole number")
    elif not schema["minimum"] <= value <= schema["maximum"]:
        raise ValueError(f"{name!r} must be from {schema['minimum']} to {schema['maximum']}")


def _bounded(text: str) -> str:
    """Leave out the middle of what is too long: how it began, and how it ended, say most."""
    if len(text) <= MAX_TEXT:
        return text
    cut = len(text) - MAX_TEXT
    return f"{text[: MAX_TEXT * 3 // 4]}\n[… {cut} characters are cut …]\n{text[-MAX_TEXT // 4 :]}"


def _answer(call: Call, result: Result, *, state_lost: bool = False) -> Answer:
    """Put a run into words; who follows the output is given what was not in its pieces."""
    for name, written in (("stdout", result.stdout), ("stderr", result.stderr)):
        if call.on_output is not None and written.rest:
            call.on_output(name, written.rest)
    output = [result.stdout.text()]
    if result.stderr.total:
        output.append(f"[standard error]\n{result.stderr.text()}")
    remarks = []
    if result.timed_out:
        remarks.append(f"[stopped: it took longer than {result.wall:.0f} s]")
    elif result.exit_status:
        remarks.append(f"[exit status {result.exit_status}]")
    if result.out_of_memory:
        remarks.append("[the sandbox ran out of memory]")
    if result.out_of_processes:
        remarks.append("[the sandbox ran out of processes]")
    if result.made_room:
        remarks.append(
            "[no process was left: what earlier Python calls had started was ended, and their "
            "variables are gone]"
        )
    if state_lost:
        remarks.append("[the interpreter has ended: all variables are gone]")
    text = "\n".join(part.rstrip("\n") for part in [*output, *remarks] if part)
    return Answer(
        text or "[no output]",
        failed=bool(result.exit_status or result.timed_out),
        remarks="\n".join(remarks),
    )


async def _execute_python(call: Call) -> Answer:
    interpreter = await call.keeper.interpreter(call.owner)
    executed = await interpreter.execute(
        call.arguments["code"],
        timeout=call.arguments.get("timeout", DEFAULT_TIMEOUT),
        on_output=call.on_output,
        on_killed=call.on_killed,
    )
    return _answer(call, executed.result, state_lost=executed.state_lost)


async def _run_shell(call: Call) -> Answer:
    sandbox = await call.keeper.acquire(call.owner)
    result = await sandbox.run(
        call.arguments["command"],
        timeout=call.arguments.get("timeout", DEFAULT_TIMEOUT),
        on_output=call.on_output,
        on_killed=call.on_killed,
    )
    return _answer(call, result)


async def _install_package(call: Call) -> Answer:
    package = call.arguments["package"].strip()
    if not _PACKAGE.fullmatch(package):
        return Answer(
            f"{package!r} is no package: write a name, such as numpy or 'numpy>=2,<3', or the path "
            "of a .whl file",
            failed=True,
        )
    if call.keeper.network == "none" and not package.endswith(".whl"):
        return Answer(
            "this sandbox has no network, so nothing can be fetched; do without the package, or "
            "have the operator set SANDBOX_NETWORK=internet",
            failed=True,
        )
    sandbox = await call.keeper.acquire(call.owner)
    pip = ["python3", "-m", "pip", "install", "--user", "--no-input", "--no-cache-dir"]
    result = await sandbox.run(
        [*pip, "--disable-pip-version-check", "--no-warn-script-location", "--", package],
        # Debian's Python wants to be asked twice; the sandbox is nobody's system.
        env={"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_PROGRESS_BAR": "off"},
        timeout=call.arguments.get("timeout", 600),
        on_output=call.on_output,
        on_killed=call.on_killed,
    )
    return _answer(call, result)


async def _read_file(call: Call) -> Answer:
    sandbox = await call.keeper.acquire(call.owner)
    content = await sandbox.read_file(call.arguments["path"])
    if b"\0" in content[:8192]:
        return Answer(f"a binary file of {len(content)} bytes", failed=True)
    return Answer(content.decode(errors="replace"))


async def _write_file(call: Call) -> Answer:
    sandbox = await call.keeper.acquire(call.owner)
    content = call.arguments["content"].encode(errors="replace")
    await sandbox.write_file(call.arguments["path"], content)
    return Answer(f"{len(content)} bytes written to {call.arguments['path']}")


async def _list_files(call: Call) -> Answer:
    sandbox = await call.keeper.acquire(call.owner)
    entries = await sandbox.list_files(call.arguments.get("path", "."))
    lines = [f"{entry.kind:9} {entry.size:>12} {entry.name}" for entry in entries]
    return Answer("\n".join(lines) or "[empty]")


async def _unzip_file(call: Call) -> Answer:
    sandbox = await call.keeper.acquire(call.owner)
    target = call.arguments.get("target", ".")
    names = await sandbox.unpack(call.arguments["path"], target)
    return Answer("\n".join([f"{len(names)} unpacked to {target}:", *names]))


_PATH: Final = {"type": "string", "minLength": 1, "maxLength": 4096}
_FILE: Final = {**_PATH, "description": "The file, from the home directory or from /."}
_SECONDS: Final = {
    "type": "integer",
    "minimum": 1,
    "maximum": MAX_TIMEOUT,
    "description": f"Seconds until it is stopped; {DEFAULT_TIMEOUT} if not given.",
}


def _text(description: str, most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most, "description": description}


TOOLS: Final = (
    Tool(
        "execute_python",
        "Run Python code in the user's sandbox. Variables, imports and files stay for the next "
        "call. What is printed comes back, and the value of the last line if it is an expression.",
        {"code": _text("The code.", MAX_CODE // 4), "timeout": _SECONDS},
        ("code",),
        _execute_python,
    ),
    Tool(
        "run_shell",
        "Run a shell command in the user's sandbox (sh, in the home directory). Files stay for the "
        "next call; processes do not, not even in the background.",
        {"command": _text("The command.", 100_000), "timeout": _SECONDS},
        ("command",),
        _run_shell,
    ),
    Tool(
        "install_package",
        "Install a Python package in the user's sandbox, with pip.",
        {"package": _text("Its name, with a version if need be.", 200), "timeout": _SECONDS},
        ("package",),
        _install_package,
    ),
    Tool(
        "read_file",
        "Return the text of a file in the user's sandbox.",
        {"path": _FILE},
        ("path",),
        _read_file,
    ),
    Tool(
        "write_file",
        "Write text to a file in the user's sandbox; directories are made as needed.",
        {"path": _FILE, "content": _text("The whole content.", 8_000_000, 0)},
        ("path", "content"),
        _write_file,
    ),
    Tool(
        "list_files",
        "List a directory in the user's sandbox: kind, size in bytes and name.",
        {"path": {**_PATH, "description": "The directory; the home directory if not given."}},
        (),
        _list_files,
    ),
    Tool(
        "unzip_file",
        "Unpack a zip or tar archive in the user's sandbox.",
        {
            "path": {**_PATH, "description": "The archive."},
            "target": {**_PATH, "description": "Where to; the home directory if not given."},
        },
        ("path",),
        _unzip_file,
    ),
)
"""All of them; `{tool.name: tool for tool in TOOLS}` finds one by name."""
