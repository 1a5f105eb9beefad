"""Connects to the gateway again and again until a file is there, and prints what came of it.

`crowd.py FILE` runs in the machine. Each connection has to get as far as a WebSocket.
"""

import json
import os
import socket
import sys
import threading
from collections import Counter

ASK = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def connect() -> str:
    try:
        with socket.create_connection(("127.0.0.1", 18789), timeout=30) as connection:
            connection.sendall(ASK)
            return connection.recv(12).decode()
    except OSError as error:
        return type(error).__name__


def keep_connecting(until: str, seen: "Counter[str]") -> None:
    while not os.path.exists(until):
        seen[connect()] += 1


def main(until: str) -> None:
    seen: Counter[str] = Counter()
    threads = [threading.Thread(target=keep_connecting, args=(until, seen)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
