"""An adapter: a chat over TCP, where each connection is a conversation and each line a message.

python examples/lines.py 4000       and in another terminal:       nc 127.0.0.1 4000
"""

import os
import sys
from functools import partial
from uuid import uuid4

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from clarad.adapters import Adapter, open_adapter
from clarad.protocol import Cancelled, Channel, Error, Message, ResponseChunk, ResponseEnd, User

GONE = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError)


async def converse(adapter: Adapter, stream: SocketStream) -> None:
    user = User(id="lines-guest", platform_id="guest")
    channel = Channel(id=f"lines-{uuid4()}", type="dm")
    lines = BufferedByteReceiveStream(stream)
    async with stream:
        try:
            while line := (await lines.receive_until(b"\n", 65536)).decode(errors="replace"):
                message = Message(id=str(uuid4()), user=user, channel=channel, content=line.strip())
                try:
                    await show(adapter, message, stream)
                finally:
                    adapter.cancel(message.id, "the user has gone")
        except GONE:
            pass


async def show(adapter: Adapter, message: Message, stream: SocketStream) -> None:
    async for frame in adapter.ask(message):
        if isinstance(frame, ResponseChunk):
            await stream.send(frame.chunk.encode())
        elif isinstance(frame, ResponseEnd):
            await stream.send(b"\n")
        elif isinstance(frame, Cancelled):
            await stream.send(f"[cancelled: {frame.reason}]\n".encode())
        elif isinstance(frame, Error):
            await stream.send(f"[{frame.message}]\n".encode())


async def main(url: str, port: int) -> None:
    secret = os.environ.get("CLARA_GATEWAY_SECRET")
    async with open_adapter(url, node_id="lines", platform="lines", secret=secret) as adapter:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        async with listener:
            await listener.serve(partial(converse, adapter))


if __name__ == "__main__":
    gateway = os.environ.get("CLARA_GATEWAY_URL", "ws://127.0.0.1:18789")
    anyio.run(main, gateway, int(sys.argv[1]))
