"""A real nginx and a real HAProxy in front of a daemon, configured as docs/operations.md has it.

Where one is not installed its tests are not generated, unless `CLARAD_REQUIRE_PROXIES=1` says that
both have to be there.
"""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

DOCS: Final = Path(__file__).parents[1] / "docs" / "operations.md"

PORT: Final = 18443

INSTALLED: Final = {
    name: path
    for name in ("nginx", "haproxy")
    if (path := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"))
}
if len(INSTALLED) < 2 and os.environ.get("CLARAD_REQUIRE_PROXIES") == "1":
    raise RuntimeError("CLARAD_REQUIRE_PROXIES=1 is set, and nginx or HAProxy is not installed")

_NGINX: Final = """
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    {temporary}
    {snippet}
}}
"""
_LISTEN: Final = {"nginx": "listen", "haproxy": "bind"}
_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def snippet(name: str, *changes: Mapping[str, str]) -> str:
    """Return what the documentation has for this proxy, with each of these replaced in turn."""
    found = re.search(rf"^```{name}\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    text = found[1]
    for old, new in (pair for some in changes for pair in some.items()):
        assert old in text, f"{old!r} is not in what {DOCS.name} has for {name}"
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def proxy(
    name: str, directory: Path, daemon: int, changes: Mapping[str, str]
) -> AsyncIterator[str]:
    """Run it in front of the port `daemon`; yields the address where it listens, at `PORT`."""
    # An address of its own, since a port that is free now may be another's a moment later.
    host = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    where = {
        "127.0.0.1:18789": f"127.0.0.1:{daemon}",
        "listen 443" if name == "nginx" else "bind :443": f"{_LISTEN[name]} {host}:{PORT}",
    }
    text = snippet(name, changes, where)
    config = directory / f"{name}.conf"
    if name == "nginx":
        temporary = [f"{kind}_temp_path {directory}/{kind};" for kind in _TEMPORARY]
        text = _NGINX.format(directory=directory, temporary=" ".join(temporary), snippet=text)
        if os.geteuid() != 0:
            text = text.replace("user root;", "")
        command = [INSTALLED[name], "-e", "stderr", "-c", f"{config}"]
    else:
        command = [INSTALLED[name], "-db", "-f", f"{config}"]
    config.write_text(text)
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(_run, command)
        await _wait_until_it_listens(host, process)
        yield host
        nursery.cancel_scope.cancel("the test has ended")


async def _run(
    command: list[str], task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    await trio.run_process(command, stdout=subprocess.DEVNULL, stderr=None, task_status=task_status)


async def _wait_until_it_listens(host: str, process: trio.Process) -> None:
    with trio.fail_after(30):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, PORT)
            except OSError:
                assert process.poll() is None, "it has ended"
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return
