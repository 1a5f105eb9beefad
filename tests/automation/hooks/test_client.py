"""Attempts at a webhook against a real server, and what becomes of the client between them."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest
import trio

from clarad.automation.hooks import attempt as reaction
from clarad.automation.hooks import webhook
from clarad.automation.hooks.client import WebhookClient
from clarad.automation.hooks.hook import Hook
from clarad.automation.hooks.webhook import MAX_BODY
from clarad.automation.runs.run import AttemptResult
from clarad.events import Event, EventType
from clarad.process.shell import Output
from clarad.store import Outcome
from tests.receiver import PATIENCE, answers, forget_proxies, receiver, says, verify

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RAN: Final = AttemptResult(Outcome.RAN, worth_retrying=False)


@dataclass
class Post:
    """A webhooks, and the output of its attempts."""

    webhooks: WebhookClient = field(default_factory=WebhookClient)
    output: Output = field(default_factory=Output)

    async def attempt(
        self, url: str, run_id: str = "hook-1-1", payload: bytes = b"{}", **fields: Any
    ) -> AttemptResult:
        with trio.fail_after(PATIENCE):
            return await self.webhooks.attempt(hook(url, **fields), run_id, payload, self.output)


def hook(url: str, **fields: Any) -> Hook:
    return Hook(
        name="notify",
        events=frozenset({EventType.TOOL_ERROR}),
        type="webhook",
        url=url,
        working_dir=Path("/"),
        **fields,
    )


@pytest.fixture(autouse=True)
def no_proxies() -> Iterator[None]:
    """Nothing between the webhooks and the server."""
    with pytest.MonkeyPatch.context() as environment:
        forget_proxies(environment)
        yield


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    """A webhooks, which is closed when the test ends."""
    made = Post()
    yield made
    await made.webhooks.aclose()


# --- what becomes of an attempt ------------------------------------------------------------------


async def test_what_is_accepted_ran_and_the_answer_is_the_output(post: Post) -> None:
    async with receiver(answers(200, body=b"thanks")) as server:
        tried = await post.attempt(server.url)
    assert tried == RAN
    assert post.output.stdout.kept == b"thanks"
    assert post.output.stderr.kept == b""


async def test_what_is_posted_is_the_payload_signed_and_with_the_headers_of_the_hook(
    post: Post,
) -> None:
    async with receiver(answers(204)) as server:
        await post.attempt(
            server.url,
            payload=b'{"type":"tool:error"}',
            secret=SECRET,
            headers={"X-Source": "clarad"},
        )
    (request,) = server.requests
    assert request.body == b'{"type":"tool:error"}'
    assert request.headers["x-source"] == "clarad"
    verify(SECRET, request)


async def test_each_attempt_has_the_id_of_its_run(post: Post) -> None:
    async with receiver(answers(503)) as server:
        for run_id in ("hook-1-1", "hook-1-1", "hook-1-2"):
            await post.attempt(server.url, run_id)
    ids = [request.headers["webhook-id"] for request in server.requests]
    assert ids == ["hook-1-1", "hook-1-1", "hook-1-2"]


async def test_what_is_refused_failed_for_good(post: Post) -> None:
    async with receiver(answers(404, body=b"no such hook")) as server:
        tried = await post.attempt(server.url)
    reason = "the server answered 404 Not Found"
    assert tried == AttemptResult(Outcome.FAILED, reason, worth_retrying=False)
    assert post.output.stdout.kept == b"no such hook"


async def test_a_server_in_trouble_is_tried_again(post: Post) -> None:
    async with receiver(answers(500)) as server:
        tried = await post.attempt(server.url)
    assert tried == AttemptResult(Outcome.FAILED, "the server answered 500 Internal Server Error")


async def test_a_server_may_say_when_it_is_tried_again(post: Post) -> None:
    async with receiver(answers(429, "Retry-After: 120")) as server:
        tried = await post.attempt(server.url)
    reason = "the server answered 429 Too Many Requests"
    assert tried == AttemptResult(Outcome.FAILED, reason, retry_after=120)


async def test_a_server_that_is_not_there_is_tried_again(post: Post) -> None:
    async with receiver(answers(200)) as server:
        url = server.url
    tried = await post.attempt(url)
    assert tried.outcome is Outcome.FAILED
    assert tried.reason.endswith("Connection refused")
    assert tried.worth_retrying


async def test_a_server_that_hangs_up_is_tried_again(post: Post) -> None:
    async with receiver(says(b"")) as server:
        tried = await post.attempt(server.url)
    assert tried.outcome is Outcome.FAILED
    assert tried.worth_retrying


async def test_an_answer_without_an_end_is_cut(post: Post) -> None:
    async with receiver(answers(200, body=b"x" * 10_000_000)) as server:
        tried = await post.attempt(server.url)
    assert tried == RAN
    assert post.output.stdout.kept == b"x" * MAX_BODY


async def test_no_secret_is_in_what_is_said(post: Post) -> None:
    async with receiver(answers(302, "Location: https://other.example/?token=hush")) as server:
        url = f"{server.url.replace('//', '//clara:hush@')}/hush?token=hush"
        tried = await post.attempt(url, secret=SECRET, headers={"X-Token": "hush"})
    assert "hush" not in tried.reason
    assert SECRET.removeprefix("whsec_") not in tried.reason


# --- the client ----------------------------------------------------------------------------------


async def test_many_are_posted_at_once_also_the_first_ones_with_one_client(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[httpx.AsyncClient] = []
    tried: list[AttemptResult] = []

    def make_client(really: Callable[[], httpx.AsyncClient]) -> httpx.AsyncClient:
        made.append(really())
        return made[-1]

    async def note(run_id: str) -> None:
        tried.append(await post.attempt(server.url, run_id))

    async with receiver(answers(200)) as server:
        with monkeypatch.context() as patched:
            patched.setattr(webhook, "make_client", partial(make_client, webhook.make_client))
            async with trio.open_nursery() as nursery:
                for n in range(20):
                    nursery.start_soon(note, f"hook-1-{n}")
        await server.deserted()
    assert tried == [RAN] * 20
    ids = {request.headers["webhook-id"] for request in server.requests}
    assert ids == {f"hook-1-{n}" for n in range(20)}
    assert len(made) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "gopher://u:hush@proxy"), ("SSL_CERT_FILE", "/nowhere/hush.pem")],
)
async def test_an_environment_that_no_client_can_use_is_said_and_nothing_is_posted(
    post: Post, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    async with receiver(answers(200)) as server:
        monkeypatch.setenv(variable, value)
        tried = await post.attempt(server.url)
    assert tried.outcome is Outcome.FAILED
    assert variable in tried.reason
    assert "hush" not in tried.reason
    assert not tried.worth_retrying
    assert server.requests == []


async def test_a_cancel_closes_the_connection_and_others_are_posted_all_the_same(
    post: Post,
) -> None:
    async def cancel_and_be_silent(_: trio.abc.Stream) -> None:
        scope.cancel("the test wants it")

    async with receiver(cancel_and_be_silent) as server:
        with trio.CancelScope() as scope:
            await post.attempt(server.url)
        assert scope.cancelled_caught
        await server.deserted()
    async with receiver(answers(200)) as server:
        assert await post.attempt(server.url) == RAN


async def test_what_is_cancelled_before_there_is_a_client_posts_nothing(post: Post) -> None:
    async with receiver(answers(200)) as server:
        with trio.CancelScope() as scope:
            scope.cancel("the test wants it")
            await post.attempt(server.url)
        assert scope.cancelled_caught
        assert await post.attempt(server.url) == RAN
    assert len(server.requests) == 1


async def test_a_poster_that_has_posted_nothing_can_be_closed() -> None:
    await WebhookClient().aclose()


async def test_a_poster_that_was_closed_posts_again(post: Post) -> None:
    """The part of the daemon that it belongs to may be started again."""
    async with receiver(answers(200)) as server:
        await post.attempt(server.url)
        await post.webhooks.aclose()
        assert await post.attempt(server.url) == RAN


# --- a hook that is a webhook --------------------------------------------------------------------


async def test_a_webhook_is_the_whole_event_as_json() -> None:
    happened = Event(
        id="event-1",
        type=EventType.TOOL_ERROR,
        timestamp=datetime(2027, 3, 1, 12, tzinfo=UTC),
        user_id='"; rm -rf ~ #',
        caused_by=("task-1-1",),
        data={"text": "Grüße\0"},
    )
    webhooks, output = WebhookClient(), Output()
    async with receiver(answers(200, body=b"thanks")) as server:
        with trio.fail_after(PATIENCE):
            tried = await reaction.attempt(
                hook(server.url, secret=SECRET),
                happened,
                run_id="hook-1-1",
                number=2,
                webhooks=webhooks,
                output=output,
            )
    await webhooks.aclose()
    assert tried == RAN
    assert output.stdout.kept == b"thanks"
    (request,) = server.requests
    verify(SECRET, request)
    assert request.headers["webhook-id"] == "hook-1-1"
    assert msgspec.json.decode(request.body, type=Event) == happened
