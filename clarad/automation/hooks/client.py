"""The HTTP client of all webhooks, and one attempt of a webhook's run."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from clarad.automation.hooks.hook import Hook
from clarad.automation.runs.run import AttemptResult
from clarad.process.shell import Output
from clarad.store import Outcome

if TYPE_CHECKING:
    import httpx


class WebhookClient:
    """Posts webhooks with one shared client, which the first attempt creates."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._making = trio.Lock()  # creating it takes a thread, and other attempts wait for it

    async def attempt(
        self, hook: Hook, run_id: str, payload: bytes, output: Output
    ) -> AttemptResult:
        """Post `payload`; the response's body is the output. Cancelling closes the connection."""
        async with self._making:
            if self._client is None:
                made = await trio.to_thread.run_sync(_make_client)
                if isinstance(made, str):
                    return AttemptResult(Outcome.FAILED, made, worth_retrying=False)
                self._client = made
            client = self._client
        from clarad.automation.hooks import webhook

        posted = await webhook.post(
            client,
            url=hook.url,
            headers=hook.headers,
            secret=hook.secret,
            message_id=run_id,
            body=payload,
            now=datetime.now(UTC),
        )
        output.stdout.add(posted.body)
        return AttemptResult(
            Outcome.FAILED if posted.reason else Outcome.RAN,
            posted.reason,
            worth_retrying=posted.worth_retrying,
            retry_after=posted.retry_after or 0,
        )

    async def aclose(self) -> None:
        """Close the client."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _make_client() -> "httpx.AsyncClient | str":
    """Return a client, or why there cannot be one. Blocks."""
    # Imported here, since httpx is large and few people have webhooks.
    from clarad.automation.hooks import webhook

    try:
        return webhook.make_client()
    except webhook.UnsendableError as error:
        return str(error)
