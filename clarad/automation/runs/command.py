"""One attempt at a shell command, as hooks and tasks make it."""

from collections.abc import Mapping
from pathlib import Path

from clarad.automation.runs.run import Tried
from clarad.process import shell
from clarad.store import Outcome


async def attempt(
    command: str, *, env: Mapping[str, str], cwd: Path, output: shell.Output, stdin: bytes = b""
) -> Tried:
    """Run the command; whatever happens to it is an outcome.

    `env` is what it gets beside the daemon's own environment. Cancelling ends all its processes.
    """
    try:
        whole = shell.operators_environment(env)
        result = await shell.run(command, env=whole, stdin=stdin, cwd=cwd, output=output)
    except OSError as error:
        return Tried(Outcome.FAILED, f"it cannot be started: {error.strerror or error}")
    except shell.UnkillableError as error:
        return Tried(Outcome.FAILED, str(error))
    if result.exit_status == 0:
        return Tried(Outcome.RAN, exit_status=0)
    return Tried(Outcome.FAILED, shell.in_words(result.exit_status), result.exit_status)
