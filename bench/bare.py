"""The least a gateway can be: trio-websocket, msgspec, the three frames of an answer, no store.

`python -m bench.bare` binds a free port of the loopback interface, prints it, and serves until
it is terminated. What clarad costs is measured against this.
"""

import itertools

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    serve_websocket,
)

from bench import wire

_decode = msgspec.json.Decoder(wire.Register | wire.Message).decode
_encode = msgspec.json.Encoder().encode


async def main() -> None:
    """Serve for ever on a free port, printed once it listens."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, _serve, "127.0.0.1", 0, None)
        print(server.port, flush=True)


async def _serve(request: WebSocketRequest) -> None:
    connection = await request.accept()
    numbers = itertools.count()
    try:
        while True:
            frame = _decode(await connection.get_message())
            if isinstance(frame, wire.Register):
                await _send(connection, wire.Registered(frame.node_id, "s", "", ""))
            else:
                await _answer(connection, frame, f"response-{next(numbers)}")
    except ConnectionClosed:
        pass


async def _answer(connection: WebSocketConnection, message: wire.Message, answer: str) -> None:
    await _send(connection, wire.ResponseStart(answer, message.id))
    await _send(connection, wire.ResponseChunk(answer, message.id, message.content))
    await _send(connection, wire.ResponseEnd(answer, message.id, message.content))


async def _send(connection: WebSocketConnection, frame: msgspec.Struct) -> None:
    await connection.send_message(_encode(frame).decode())


if __name__ == "__main__":
    trio.run(main)
