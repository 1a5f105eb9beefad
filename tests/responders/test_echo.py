from clarad import responders
from clarad.config import load
from clarad.protocol import Channel, Message, Stopped, User
from clarad.responders import Request
from clarad.responders.echo import Echo


class RecordingAnswer:
    """Remembers what was answered."""

    def __init__(self) -> None:
        self.stopped = Stopped()
        self.chunks: list[str] = []

    def text(self, chunk: str) -> None:
        self.chunks.append(chunk)

    def tool_start(self, name: str, *, description: str | None = None, emoji: str = "🔧") -> None:
        raise AssertionError("echo has no tools")

    def tool_result(self, name: str, *, success: bool, preview: str | None = None) -> None:
        raise AssertionError("echo has no tools")


def request(content: str) -> Request:
    message = Message(
        id="m-1",
        user=User(id="test-u", platform_id="u"),
        channel=Channel(id="c"),
        content=content,
    )
    return Request(message=message, node_id="n", platform="test", session_id="s")


async def test_echo_says_what_it_is_told() -> None:
    answer = RecordingAnswer()
    await Echo().respond(request("hello\n😀\0"), answer)
    assert answer.chunks == ["hello\n😀\0"]


async def test_echo_has_nothing_to_say_to_nothing() -> None:
    answer = RecordingAnswer()
    await Echo().respond(request(""), answer)
    assert "".join(answer.chunks) == ""


def test_echo_is_what_answers_unless_something_else_is_set() -> None:
    settings, _ = load({})
    assert isinstance(responders.make(settings), Echo)
