"""Sandboxes that are Docker containers.

The root of the file system is read-only; what can be written (home, /tmp, /dev/shm) is in memory,
counts towards the memory limit and is kept well below it: what fills a tmpfs is not freed when
processes die, and a container without free memory cannot be used any more.
"""

import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from sandbox.engine import GID, HOME, UID, EngineError, in_thread
from sandbox.inside import program
from sandbox.settings import MIB, Settings
from sandbox.streams import AttachStream, Broken, answers, attach, connect

T = TypeVar("T")

LABEL: Final = "sandbox.keeper"

_TIMEOUT: Final = 60
"""Seconds that Docker has for one answer."""

_KILL_TIMEOUT: Final = 10
"""Seconds that it has when a sandbox is to go: whoever waits for that has waited already."""

_REMOVAL: Final = 10.0
"""Seconds that a container has to go."""

_SHARED: Final = 8 * MIB
_BYTES_PER_INODE: Final = 16 << 10  # each takes about 1 KiB of memory beyond tmpfs's count


class Docker:
    """The engine; everything it makes carries the keeper's label."""

    name = "docker"
    max_processes = None
    disk_to_verify = None  # a tmpfs has its size

    def __init__(self, settings: Settings, keeper: str) -> None:
        self._settings = settings
        self._own = settings.docker
        self._keeper = keeper
        self._disk = settings.disk or self._own.memory // 2
        self._calls = trio.CapacityLimiter(8)
        self._kills = trio.CapacityLimiter(4)  # these never queue behind the others
        self._clients: dict[int, Any] = {}
        self._host = settings.docker_host or "unix:///var/run/docker.sock"
        self._address = _address(self._host)
        self._tls: ssl.SSLContext | None = None

    @property
    def max_file(self) -> int:
        """No more than fits."""
        return self._disk

    async def check(self) -> list[str]:
        """See whether Docker answers, has the image and the runtime, and can keep the limits."""
        if self._disk > self._own.memory // 2:
            raise EngineError(
                f"SANDBOX_DISK={self._disk // MIB}MiB: on Docker what a sandbox writes is in its "
                f"memory; write at most half of DOCKER_SANDBOX_MEMORY, which is "
                f"{self._own.memory // MIB}MiB, or raise that"
            )
        info = await self._call(lambda client: client.info())
        runtime = self._settings.docker_runtime
        if runtime is not None and runtime not in info.get("Runtimes", {}):
            known = ", ".join(sorted(info.get("Runtimes", {})))
            raise EngineError(
                f"DOCKER_SANDBOX_RUNTIME={runtime}: Docker does not have it, but {known}; "
                "install it, or drop the setting"
            )
        if not await self._call(self._has_image):
            raise EngineError(
                f"Docker does not have the image {self._own.image}: fetch it with "
                f"docker pull {self._own.image}"
            )
        return _what_is_not_enforced(info)

    async def create(self, name: str) -> trio.abc.Stream:
        """Create the container, attach to it, start it."""
        await self._call(partial(self._create, name=name))
        stream = await self._attach(name)
        try:
            await self._call(lambda client: client.start(name))
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            raise
        return stream

    async def destroy(self, name: str) -> None:
        """Remove the container with all that runs in it."""
        await self._call(partial(_remove, name=name), kill=True)

    async def names(self) -> list[str]:
        """Containers with our label, whatever their state."""
        found = await self._call(
            lambda client: client.containers(all=True, filters={"label": f"{LABEL}={self._keeper}"})
        )
        return [container["Names"][0].lstrip("/") for container in found if container["Names"]]

    def close(self) -> None:
        """Let go of connections."""
        for client in self._clients.values():
            client.close()

    def _create(self, client: Any, name: str) -> None:
        client.create_container(
            self._own.image,
            ["python3", "-I", "-c", program("agent"), str(UID), str(GID), HOME],
            name=name,
            hostname="sandbox",
            user="0:0",
            working_dir="/",
            entrypoint=[],
            stdin_open=True,
            environment={},
            labels={LABEL: self._keeper},
            network_disabled=self._settings.network == "none",
            host_config=self._limits(client),
        )

    def _limits(self, client: Any) -> Any:
        settings = self._settings
        return client.create_host_config(
            auto_remove=True,
            network_mode="none" if settings.network == "none" else "bridge",
            read_only=True,
            tmpfs=self._writable(),
            cap_drop=["ALL"],
            # The agent alone has them: to start runs as their user, and to give up the rest.
            cap_add=["SETUID", "SETGID", "SETPCAP"],
            security_opt=["no-new-privileges"],
            mem_limit=self._own.memory,
            memswap_limit=self._own.memory,
            nano_cpus=round(self._own.cpu * 1e9),
            pids_limit=settings.pids,
            runtime=settings.docker_runtime,
            sysctls={"kernel.shm_rmid_forced": "1"},  # shared memory goes with its last process
            log_config={"type": "none", "config": {}},  # what an agent says is not for disks
        )

    def _writable(self) -> dict[str, str]:
        home, temporary = self._disk * 3 // 4, self._disk // 4

        def options(size: int, rest: str) -> str:
            # nr_inodes: empty files cost memory, too.
            return (
                f"size={size},nr_inodes={max(size // _BYTES_PER_INODE, 1024)},nosuid,nodev,{rest}"
            )

        return {
            HOME: options(home, f"exec,uid={UID},gid={GID},mode=0700"),
            "/tmp": options(temporary, "exec,mode=1777"),  # noqa: S108 - the sandbox's
            "/dev/shm": options(_SHARED, "noexec,mode=1777"),  # noqa: S108
        }

    async def _attach(self, name: str) -> AttachStream:
        target = f"/containers/{name}/attach?stream=1&stdin=1&stdout=1"
        try:
            stream = await connect(self._address, self._tls)
            return await attach(stream, target)
        except (OSError, Broken, trio.BrokenResourceError) as error:
            raise EngineError(f"Docker does not let us attach to a sandbox: {error}") from error

    def _has_image(self, client: Any) -> bool:
        from docker.errors import ImageNotFound

        try:
            client.inspect_image(self._own.image)
        except ImageNotFound:
            return False
        return True

    def _connect(self, timeout: int) -> Any:
        from docker import APIClient
        from docker.utils import kwargs_from_env

        chosen: dict[str, Any] = {**kwargs_from_env()}  # the TLS certificates, as Docker's client
        client = APIClient(**{**chosen, "base_url": self._host}, version="auto", timeout=timeout)
        client.trust_env = False  # REQUESTS_CA_BUNDLE would go before Docker's own certificates
        if client.cert or client.verify is not True:
            self._tls = ssl.create_default_context(
                cafile=client.verify if isinstance(client.verify, str) else None
            )
            if client.cert:
                self._tls.load_cert_chain(*client.cert)
        return client

    async def _call(self, function: Callable[[Any], T], *, kill: bool = False) -> T:
        """Call the SDK in a thread, and say what it raises in one sentence."""
        timeout = _KILL_TIMEOUT if kill else _TIMEOUT

        def call() -> T:
            from docker.errors import DockerException
            from requests import RequestException

            silent = f"Docker does not answer at {self._host}: start it, or set DOCKER_HOST"
            if isinstance(self._address, str) and not answers(self._address):
                raise EngineError(silent)
            try:
                if timeout not in self._clients:
                    self._clients[timeout] = self._connect(timeout)
                return function(self._clients[timeout])
            except (DockerException, RequestException) as error:
                raise EngineError(self._explain(error) or silent) from error

        return await in_thread(call, self._kills if kill else self._calls, "Docker")

    def _explain(self, error: Exception) -> str | None:
        """Say what Docker said, if it did."""
        explanation = str(getattr(error, "explanation", None) or "").strip()
        if "python3" in explanation:
            return f"the image {self._own.image} has no python3: a sandbox needs 3.9 or newer"
        return f"Docker refused: {explanation}" if explanation else None


def _address(host: str) -> str | tuple[str, int]:
    if host.startswith("unix://"):
        return host.removeprefix("unix://")
    name, _, port = host.partition("://")[2].partition(":")
    return name, int(port or 2375)


def _remove(client: Any, name: str) -> None:
    from docker.errors import APIError, NotFound

    give_up_at = time.monotonic() + _REMOVAL
    while True:
        try:
            client.remove_container(name, force=True, v=True)
            client.inspect_container(name)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:
                raise
        if time.monotonic() > give_up_at:
            raise EngineError(f"Docker still has the sandbox {name}")
        time.sleep(0.05)  # it removes itself at the moment


def _what_is_not_enforced(info: dict[str, Any]) -> list[str]:
    missing = [
        what
        for what, key in (
            ("memory", "MemoryLimit"), ("swap", "SwapLimit"),
            ("processes", "PidsLimit"), ("CPU", "CpuCfsQuota"),
        )
        if not info.get(key)
    ]  # fmt: skip
    warnings = [f"this kernel does not let Docker limit {what}" for what in missing]
    if not any("seccomp" in option for option in info.get("SecurityOptions") or []):
        warnings.append("this Docker runs without seccomp: system calls are not filtered")
    return warnings
