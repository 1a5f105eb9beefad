"""The Python that keeps its variables between calls: code by fd 3, word of its end by fd 4."""

from __future__ import annotations

import ast
import linecache
import os
import site
import struct
import sys
import traceback
from typing import Any

CALLS, REPLIES = 3, 4
_HEADER = struct.Struct(">8sI")  # a call's token, and the length of its code
_ANSWER = struct.Struct(">8sB")  # `frames.ANSWER`; this program comes without it


def main() -> None:
    """Run what comes, until nothing more does."""
    for fd in (CALLS, REPLIES):
        os.set_inheritable(fd, False)  # subprocesses have no part in it
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    module.__dict__["__builtins__"] = __builtins__
    sys.argv = [""]
    sys.path.insert(0, "")
    own, number = os.getpid(), 0
    while (header := _exactly(_HEADER.size)) is not None:
        token, length = _HEADER.unpack(header)
        code = _exactly(length)
        if code is None:
            break
        number += 1
        status = _execute(code.decode(errors="replace"), f"<call {number}>", module.__dict__)
        if os.getpid() != own:
            os._exit(status & 0xFF)  # a fork's child that came back here is none of ours
        os.write(REPLIES, _ANSWER.pack(token, status & 0xFF))


def _exactly(count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = os.read(CALLS, count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _execute(code: str, name: str, variables: dict[str, Any]) -> int:
    """Run a piece of code; if its last statement is an expression, show its value."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    site.addsitedir(site.getusersitepackages())  # it may have come into being since the start
    status = 0
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), variables)  # noqa: S102 - its purpose
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), variables)  # noqa: S307
            if value is not None:
                print(repr(value))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        status = 1
        ours = error.__traceback__
        theirs = ours.tb_next if ours is not None else None
        traceback.print_exception(type(error), error, theirs)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            status = status or 1  # they closed it, or put something else in its place
    return status
