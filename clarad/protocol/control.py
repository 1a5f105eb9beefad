"""The wire between a command of the operator and the daemon: the frames of the control socket.

No I/O happens here. Frames are as in `clarad.protocol`; the last section of `docs/protocol.md` is
the reference.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from clarad import protocol
from clarad.protocol import Id

# What a command is given: without NUL, and as long as Linux takes one (MAX_ARG_STRLEN, execve(2)).
Word = Annotated[str, Meta(max_length=131_071, pattern=r"^[^\x00]*\Z")]

# --- command → daemon ----------------------------------------------------------------------------
# `id` is the client's choice, and comes back with the answer.


class Reload(Struct, frozen=True, tag="reload"):
    """Read the configuration again, and take it if nothing is wrong with it."""

    id: Id


class Status(Struct, frozen=True, tag="status"):
    """Say that you are well."""

    id: Id


class Overview(Struct, frozen=True, tag="overview"):
    """Say which hooks or tasks run, and what a reload would change of them."""

    id: Id
    of: Literal["hooks", "tasks"]


class RunTask(Struct, frozen=True, tag="run_task"):
    """Run a task now; `caused_by` are the runs that led to this, the nearest last."""

    id: Id
    task: Id
    caused_by: Annotated[list[Id], Meta(max_length=64)] = []


class PauseTask(Struct, frozen=True, tag="pause_task"):
    """Do not run a task by the clock until it is resumed."""

    id: Id
    task: Id


class ResumeTask(Struct, frozen=True, tag="resume_task"):
    """Run a paused task by the clock again."""

    id: Id
    task: Id


class ReplayRun(Struct, frozen=True, tag="replay_run"):
    """Run again what an earlier run did, with what it was given; `caused_by` as in `RunTask`."""

    id: Id
    run: Id
    caused_by: Annotated[list[Id], Meta(max_length=64)] = []


class SandboxStatus(Struct, frozen=True, tag="sandbox_status"):
    """Say which sandboxes there are."""

    id: Id


class SandboxExec(Struct, frozen=True, tag="sandbox_exec"):
    """Run a command in an owner's sandbox; what it writes comes as `output`."""

    id: Id
    owner: Id
    argv: Annotated[list[Word], Meta(min_length=1, max_length=4096)]


class SandboxReset(Struct, frozen=True, tag="sandbox_reset"):
    """End an owner's sandbox, with its files."""

    id: Id
    owner: Id


class SandboxPrune(Struct, frozen=True, tag="sandbox_prune"):
    """Remove sandboxes that were left behind."""

    id: Id


class CloseToken(Struct, frozen=True, tag="close_token"):
    """Close the connections of a token that was revoked."""

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
    """A run has begun; its `done` follows when it has ended."""

    id: str
    run: str


class Output(Struct, frozen=True, tag="output"):
    """A piece of what a command writes; `stream` is `stdout` or `stderr`."""

    id: str
    stream: str
    text: str


class Done(Struct, frozen=True, tag="done", omit_defaults=True):
    """The request was carried out; `text` says so to a person.

    `run` is the run that it led to, and `outcome` how that ended; `exit_status` is a command's,
    negative for a signal, and `rows` are what was asked for.
    """

    id: str
    text: str
    run: str | None = None
    outcome: str | None = None
    exit_status: int | None = None
    rows: list[dict[str, Any]] | None = None


class Refusal(Struct, frozen=True, tag="refused"):
    """The request was not carried out; `problems` has a sentence for each reason."""

    id: str
    problems: list[str]


Answer = Started | Output | Done | Refusal | protocol.Error


# --- what is said of a request, on either side of the wire ---------------------------------------


class Report(Struct, frozen=True):
    """What came of a request that was carried out: a `Done` without the `id`."""

    text: str
    run: str | None = None
    outcome: str | None = None
    exit_status: int | None = None
    rows: list[dict[str, Any]] | None = None


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that is not carried out; `problems` has a sentence for each reason."""

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
        protocol.Refused: it is none; the exception holds the answer to it.
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
    """Say how many sandboxes were removed: by the daemon, or where none runs."""
    return f"removed {number} sandbox{'es' * (number != 1)} that had been left behind"
