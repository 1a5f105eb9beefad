"""The protocol between an operator's command and the daemon: the control socket. No I/O.

Frames are as in `clarad.protocol`; the last section of docs/protocol.md is the reference.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from clarad import protocol
from clarad.protocol import Id

# An argument of a command: no NUL, and no longer than Linux allows (MAX_ARG_STRLEN, execve(2)).
Word = Annotated[str, Meta(max_length=131_071, pattern=r"^[^\x00]*\Z")]

# --- command → daemon ----------------------------------------------------------------------------
# The client chooses `id`; every answer repeats it.


class Reload(Struct, frozen=True, tag="reload"):
    """Read the configuration again, and put it in force if it is valid."""

    id: Id


class Status(Struct, frozen=True, tag="status"):
    """Ask for the daemon's state."""

    id: Id


class Overview(Struct, frozen=True, tag="overview"):
    """List the hooks or tasks in force, and what a reload would change."""

    id: Id
    of: Literal["hooks", "tasks"]


class RunTask(Struct, frozen=True, tag="run_task"):
    """Run a task now; `caused_by` are the runs that have led to this, the nearest last."""

    id: Id
    task: Id
    caused_by: Annotated[list[Id], Meta(max_length=64)] = []


class PauseTask(Struct, frozen=True, tag="pause_task"):
    """Stop running a task by its schedule until it is resumed."""

    id: Id
    task: Id


class ResumeTask(Struct, frozen=True, tag="resume_task"):
    """Run a paused task by its schedule again."""

    id: Id
    task: Id


class ReplayRun(Struct, frozen=True, tag="replay_run"):
    """Repeat an earlier run with the same input; `caused_by` as in `RunTask`."""

    id: Id
    run: Id
    caused_by: Annotated[list[Id], Meta(max_length=64)] = []


class SandboxStatus(Struct, frozen=True, tag="sandbox_status"):
    """List the sandboxes."""

    id: Id


class SandboxExec(Struct, frozen=True, tag="sandbox_exec"):
    """Run a command in an owner's sandbox; its output is sent as `output`."""

    id: Id
    owner: Id
    argv: Annotated[list[Word], Meta(min_length=1, max_length=4096)]


class SandboxReset(Struct, frozen=True, tag="sandbox_reset"):
    """Remove an owner's sandbox and its files."""

    id: Id
    owner: Id


class SandboxPrune(Struct, frozen=True, tag="sandbox_prune"):
    """Remove sandboxes that no daemon uses any more."""

    id: Id


class CloseToken(Struct, frozen=True, tag="close_token"):
    """Close the connections of a revoked token."""

    id: Id
    token: Id


Request = (
    Reload
    | Status
    | Overview
    | RunTask
    | PauseTask
    | ResumeTask
    | ReplayRun
    | SandboxStatus
    | SandboxExec
    | SandboxReset
    | SandboxPrune
    | CloseToken
)


# --- daemon → command ----------------------------------------------------------------------------


class Started(Struct, frozen=True, tag="started"):
    """A run has begun; `done` follows at its end."""

    id: str
    run: str


class Output(Struct, frozen=True, tag="output"):
    """A piece of a command's output; `stream` is `stdout` or `stderr`."""

    id: str
    stream: str
    text: str


class Done(Struct, frozen=True, tag="done", omit_defaults=True):
    """The request was performed; `text` says so to a person.

    `run` is the run that it has started, and `outcome` is the run's. `exit_status` is a command's,
    negative for a signal. `rows` is a list that was asked for.
    """

    id: str
    text: str
    run: str | None = None
    outcome: str | None = None
    exit_status: int | None = None
    rows: list[dict[str, Any]] | None = None


class Refusal(Struct, frozen=True, tag="refused"):
    """The request was refused; `problems` has a sentence for each reason."""

    id: str
    problems: list[str]


Answer = Started | Output | Done | Refusal | protocol.Error


# --- results of a request, for both sides --------------------------------------------------------


class Report(Struct, frozen=True):
    """The result of a request: a `Done` without the `id`."""

    text: str
    run: str | None = None
    outcome: str | None = None
    exit_status: int | None = None
    rows: list[dict[str, Any]] | None = None


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request is refused; `problems` has a sentence for each reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


# --- decode --------------------------------------------------------------------------------------


_requests: Final = msgspec.json.Decoder(Request)
_answers: Final = msgspec.json.Decoder(Answer)
_TYPES: Final = protocol.tags(Request)


def decode(text: str) -> Request:
    """Read one request.

    Raises:
        protocol.Refused: it is malformed; the exception has the answer to it.
    """
    try:
        request: Request = _requests.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise protocol.refusal(text, error, _TYPES) from None
    return request


def decode_answer(text: str) -> Answer:
    """Read one answer, as a command does; raises `msgspec.MsgspecError`."""
    answer: Answer = _answers.decode(text)
    return answer


def pruned(number: int) -> str:
    """Return the sentence about removed sandboxes, for the daemon and for a command without it."""
    return f"removed {number} sandbox{'es' * (number != 1)} that had been left behind"
