"""One attempt of a hook at an event: its command, or its webhook."""

import msgspec

from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook
from clarad.automation.runs import command, environment
from clarad.automation.runs.run import Tried
from clarad.events import Event
from clarad.process import shell


async def attempt(
    hook: Hook,
    event: Event,
    *,
    run_id: str,
    number: int,
    poster: WebhookClient,
    output: shell.Output,
) -> Tried:
    """Do what the hook does, attempt `number` of the run; cancelling ends all of it.

    A command has the event in its environment, and whole on its standard input.
    """
    payload = msgspec.json.encode(event)
    if hook.type == "webhook":
        return await poster.attempt(hook, run_id, payload, output)
    of_run = environment.of_run(run_id, number, event.caused_by)
    return await command.attempt(
        hook.command,
        env=environment.of_event(event) | of_run | hook.env,
        cwd=hook.working_dir,
        stdin=payload,
        output=output,
    )
