"""One attempt of a hook's run: its command or its webhook."""

import msgspec

from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook
from clarad.automation.runs import command, environment
from clarad.automation.runs.run import AttemptResult
from clarad.events import Event
from clarad.process import shell


async def attempt(
    hook: Hook,
    event: Event,
    *,
    run_id: str,
    number: int,
    webhooks: WebhookClient,
    output: shell.Output,
) -> AttemptResult:
    """Make attempt `number` of a run. Cancelling ends its processes, or its connection.

    A command gets the event in its environment, and as JSON on its standard input.
    """
    payload = msgspec.json.encode(event)
    if hook.type == "webhook":
        return await webhooks.attempt(hook, run_id, payload, output)
    of_run = environment.of_run(run_id, number, event.caused_by)
    return await command.attempt(
        hook.command,
        env=environment.of_event(event) | of_run | hook.env,
        cwd=hook.working_dir,
        stdin=payload,
        output=output,
    )
