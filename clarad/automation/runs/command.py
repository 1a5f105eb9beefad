"""One attempt of a hook's or a task's shell command."""

from collections.abc import Mapping
from pathlib import Path

from clarad.automation.runs.run import AttemptResult
from clarad.process import shell
from clarad.store import Outcome


async def attempt(
    command: str, *, env: Mapping[str, str], cwd: Path, output: shell.Output, stdin: bytes = b""
) -> AttemptResult:
    """Run the command; every failure becomes a result, not an exception.

    `env` adds to the daemon's own environment. Cancelling ends all processes of the command.
    """
    try:
        whole = shell.operators_environment(env)
        result = await shell.run(command, env=whole, stdin=stdin, cwd=cwd, output=output)
    except OSError as error:
        return AttemptResult(Outcome.FAILED, f"it cannot be started: {error.strerror or error}")
    except shell.UnkillableError as error:
        return AttemptResult(Outcome.FAILED, str(error))
    if result.exit_status == 0:
        return AttemptResult(Outcome.RAN, exit_status=0)
    return AttemptResult(
        Outcome.FAILED, shell.describe_exit(result.exit_status), result.exit_status
    )
