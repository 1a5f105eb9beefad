"""`clarad sandbox`: the sandboxes, from the operator's side."""

import argparse
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

import sandbox
from clarad import config
from clarad.adapters.operator import NoDaemon
from clarad.adapters.terminal import HARMLESS
from clarad.cli import control, innermost, listing, parts, print_error
from clarad.cli.parts import CommandError
from clarad.config import instance
from clarad.protocol.control import (
    Output,
    SandboxExec,
    SandboxPrune,
    SandboxReset,
    SandboxStatus,
    pruned,
)
from sandbox.doctor import examine

T = TypeVar("T")

_STATUS: Final = ("name", "owner", "running", "idle")
_DOCTOR: Final = ("wall", "held", "promise", "saw")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its parts."""
    parser.description = "Sandboxes, where code of strangers runs; docs/sandbox.md says more."
    subparsers = parser.add_subparsers(dest="part", metavar="PART", required=True)
    parts.add_json_option(
        subparsers.add_parser("status", help="the sandboxes of the running daemon")
    )
    execute = subparsers.add_parser(
        "exec",
        help="run a command in an owner's sandbox",
        usage="clarad sandbox exec [-h] OWNER -- CMD [ARG ...]",
        description=(
            "Run a command in an owner's sandbox, as its user, and exit as it does. It has no\n"
            "input; of each of its outputs the first 256 KiB and the last 4 KiB are shown, as text."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_owner(execute)
    # Not "+": that would drop a second "--", which is the command's own.
    execute.add_argument(
        "argv", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments"
    )
    _add_owner(subparsers.add_parser("reset", help="end an owner's sandbox, with the files in it"))
    subparsers.add_parser("prune", help="remove sandboxes that a killed daemon has left behind")
    tell = "try to get through each wall, on the engine that is configured"
    parts.add_json_option(subparsers.add_parser("doctor", help=tell))
    parser.set_defaults(run=run)


def _add_owner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "owner", type=parts.name, metavar="OWNER", help="a user's id, such as discord-123"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one part; return 1 if it fails or a wall did not hold, and for `exec` its status."""
    functions = {
        "status": _status,
        "exec": _exec,
        "reset": _reset,
        "prune": _prune,
        "doctor": _doctor,
    }
    return parts.run_part(arguments, functions[arguments.part])


def _status(arguments: argparse.Namespace, settings: config.Settings) -> int:
    done = control.ask(settings, SandboxStatus("status"))
    listing.show(done.rows or [], _STATUS, as_json=arguments.json)
    return 0


def _exec(arguments: argparse.Namespace, settings: config.Settings) -> int:
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}

    def show(output: Output) -> None:
        stream = streams[output.stream]
        stream.write(output.text.translate(HARMLESS) if stream.isatty() else output.text)
        stream.flush()

    argv = arguments.argv[arguments.argv[:1] == ["--"] :]
    if not argv:
        raise CommandError("write the command after --: clarad sandbox exec OWNER -- CMD")
    request = SandboxExec("exec", arguments.owner, argv)
    done = control.ask(settings, request, on_output=show)
    if done.text:
        print_error(done.text)
    # As a shell has it: 128 and the number of the signal.
    status = done.exit_status or 0
    return status if status >= 0 else 128 - status


def _reset(arguments: argparse.Namespace, settings: config.Settings) -> int:
    done = control.ask(settings, SandboxReset("reset", arguments.owner))
    print(done.text)
    return 0


def _prune(_arguments: argparse.Namespace, settings: config.Settings) -> int:
    try:
        done = control.ask(settings, SandboxPrune("prune"))
    except NoDaemon:
        print(pruned(_prune_alone(settings)))
        return 0
    print(done.text)
    return 0


def _prune_alone(settings: config.Settings) -> int:
    """Remove what the last daemon left; the lock keeps a daemon from starting meanwhile."""
    if not (settings.state_dir / instance.FILE_NAME).exists():
        return 0  # no daemon has ever run here
    try:
        with instance.lock_state_dir(settings.state_dir):
            return _with_engine(_remove_all, settings)
    except (instance.AlreadyRunning, instance.Nameless) as error:
        raise CommandError(str(error)) from None


async def _remove_all(settings: config.Settings) -> int:
    engine = await sandbox.choose_engine(settings.sandbox, instance.label(settings.state_dir))
    try:
        names = await engine.names()
        for name in names:
            await engine.destroy(name)
        return len(names)
    finally:
        engine.close()


def _doctor(arguments: argparse.Namespace, settings: config.Settings) -> int:
    rows = _with_engine(_examine, settings)
    listing.show(rows, _DOCTOR, as_json=arguments.json)
    return 0 if all(row["held"] for row in rows) else 1


async def _examine(settings: config.Settings) -> list[dict[str, Any]]:
    rows = []
    name = f"clarad-doctor-{secrets.token_hex(4)}"
    async with sandbox.open_keeper(settings.sandbox, name) as keeper:
        for warning in keeper.warnings:
            print_error(f"warning: {warning}")
        async for finding in examine(keeper):
            probe = finding.probe
            row = {"wall": probe.wall, "held": finding.held, "promise": probe.promise}
            rows.append(row | {"saw": finding.saw})
    return rows


def _with_engine(
    function: Callable[[config.Settings], Awaitable[T]], settings: config.Settings
) -> T:
    try:
        return trio.run(function, settings)
    except Exception as error:
        cause = innermost(error)
        if isinstance(cause, sandbox.SandboxError):
            raise CommandError(str(cause)) from None
        raise
