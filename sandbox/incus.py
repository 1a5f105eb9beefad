"""Sandboxes that are Incus instances: unprivileged containers, or virtual machines.

Instances are ephemeral: Incus deletes them when they are off, and the agent powers them off.
"""

import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from sandbox.engine import GID, HOME, UID, EngineError
from sandbox.incus_api import Api, finish, node
from sandbox.inside import program
from sandbox.settings import MIB, Settings
from sandbox.streams import ExecStream, WebSocket

LABEL: Final = "user.sandbox.keeper"

DISK: Final = 1024 * MIB
"""The root disk, image included, where SANDBOX_DISK does not say."""

_BOOT: Final = 120.0
"""Seconds that a virtual machine has until its agent for `exec` is there."""

_REMOVAL: Final = 10
"""Seconds that an instance has to go."""

_NO_VMS: Final = "Instance type not operational"
_PROFILE: Final = "default"
_DENIED: Final = (
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open",
    "userfaultfd", "keyctl", "add_key", "request_key", "kexec_file_load", "open_by_handle_at",
    "process_vm_readv", "process_vm_writev", "move_pages", "mbind", "fanotify_init", "swapon",
    "swapoff", "quotactl", "acct", "syslog", "vmsplice",
)  # fmt: skip
"""Beyond what Incus denies: what nothing in a sandbox needs, and has been a way out before."""


class Incus:
    """The engine; everything it makes carries the keeper's label."""

    name = "incus"

    def __init__(self, settings: Settings, keeper: str) -> None:
        self._settings = settings
        self._own = settings.incus
        self._keeper = keeper
        self._is_vm = settings.mode == "incus-vm" or settings.incus_type == "vm"
        self._disk = settings.disk or DISK
        # Incus does not count processes in a virtual machine.
        self.max_processes = settings.pids if self._is_vm else None
        self._api = Api(settings)
        self._pool = ""
        self._image = ""
        self._nics: dict[str, Any] = {}

    @property
    def max_file(self) -> int:
        """No more than fits."""
        return self._disk

    @property
    def disk_to_verify(self) -> int:
        """That of every sandbox: a pool can stop keeping to sizes (`unlimited_disk`)."""
        return self._disk

    async def answers(self) -> bool:
        """Whether there is an Incus at all."""
        try:
            await self._api.get()
        except EngineError:
            return False
        return True

    async def check(self) -> list[str]:
        """See whether Incus answers, trusts us, has the image, a pool, and what it runs on."""
        server = await self._api.get()
        if server["auth"] != "trusted":
            raise EngineError(
                f"Incus at {self._api.where} does not trust our certificate: add "
                f"{self._api.certificate[0]} there, "
                "with incus config trust add-certificate"
            )
        if self._is_vm:
            await self._check_vms(server)
        self._image = await self._find_image()
        profile = await self._api.get("profiles", _PROFILE)
        self._check_devices(profile["devices"])
        return []

    async def create(self, name: str) -> trio.abc.Stream:
        """Create and start the instance, and start the agent in it."""
        body = self._instance(name)
        await self._api.call(lambda api: finish(api, api.instances.post(json=body)))
        return await self._start_agent(name)

    async def destroy(self, name: str) -> None:
        """Stop the instance with all that runs in it; being ephemeral, it is deleted by that."""
        await self._api.call(partial(_remove, name=name), kill=True)

    async def names(self) -> list[str]:
        """Instances with our label, whatever their state."""
        found = await self._api.get("instances", recursion=1)
        return [one["name"] for one in found if one["config"].get(LABEL) == self._keeper]

    def close(self) -> None:
        """Let go of connections."""
        self._api.close()

    def _instance(self, name: str) -> dict[str, Any]:
        own, settings = self._own, self._settings
        whole = own.cpu == int(own.cpu)
        config = {
            LABEL: self._keeper,
            "limits.memory": str(own.memory),
            "security.guestapi": "false",
            "boot.autostart": "false",
        }
        if self._is_vm:
            config |= {"limits.cpu": str(max(round(own.cpu), 1)), "security.secureboot": "false"}
        else:
            config |= {
                "limits.memory.enforce": "hard",
                "limits.memory.swap": "false",
                "limits.processes": str(settings.pids),
                "security.privileged": "false",
                "security.nesting": "false",
                "security.idmap.isolated": "true",
                "security.syscalls.deny_default": "true",
                "security.syscalls.deny": "\n".join(f"{call} errno 38" for call in _DENIED),
                # Shared memory goes with its last process.
                "linux.sysctl.kernel.shm_rmid_forced": "1",
                # User namespaces would give back, inside, what was taken away.
                "linux.sysctl.user.max_user_namespaces": "0",
                "limits.cpu" if whole else "limits.cpu.allowance": (
                    str(int(own.cpu)) if whole else f"{own.cpu * 100:.0f}ms/100ms"
                ),
            }
        root = {"type": "disk", "path": "/", "pool": self._pool, "size": str(self._disk)}
        return {
            "name": name,
            "type": "virtual-machine" if self._is_vm else "container",
            "ephemeral": True,
            "profiles": [],
            "source": {"type": "image", "fingerprint": self._image},
            "config": config,
            "devices": {"root": root, **self._nics},
            "start": True,
        }

    async def _start_agent(self, name: str) -> ExecStream:
        request = {
            "command": ["python3", "-I", "-c", program("agent"), str(UID), str(GID), HOME],
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
            "wait-for-websocket": True,
            "interactive": False,
            "user": 0,
            "group": 0,
            "cwd": "/",
        }
        found = await self._exec(name, request)
        sockets: dict[str, WebSocket] = {}
        try:
            # "control" last: the process starts with the fourth, and then may write at once.
            for fd in ("2", "1", "0", "control"):
                target = f"/1.0/operations/{found['id']}/websocket"
                secret = found["metadata"]["fds"][fd]
                sockets[fd] = await self._api.websocket(f"{target}?secret={secret}")
        except BaseException:
            with trio.CancelScope(shield=True):
                await ExecStream(sockets).aclose()
            raise
        return ExecStream(sockets)

    async def _exec(self, name: str, request: dict[str, Any]) -> Any:
        """Ask for a process; a virtual machine has to boot first."""
        give_up_at = trio.current_time() + _BOOT
        while True:
            try:
                return await self._api.call(
                    lambda api: api.instances[name]["exec"].post(json=request).json()["metadata"]
                )
            except EngineError as error:
                is_booting = self._is_vm and "agent" in str(error)
                if not is_booting or trio.current_time() > give_up_at:
                    raise
            await trio.sleep(0.5)

    async def _check_vms(self, server: dict[str, Any]) -> None:
        """Refuse a server without virtual machines, with its own reason."""
        drivers = server["environment"]["driver"].split(" | ")
        if "qemu" in drivers:
            return
        reason = "it runs with " + ", ".join(drivers) + " only"
        for warning in await self._api.get("warnings", recursion=1):
            if (
                warning["type"] == "Instance type not operational"
                and warning["status"] != "resolved"
            ):
                reason = warning["last_message"]
        raise EngineError(
            f"Incus at {self._api.where} cannot run virtual machines: {reason}; mend that there, "
            "or set SANDBOX_MODE=incus for containers, which are a weaker wall"
        )

    async def _find_image(self) -> str:
        """Return the fingerprint of the image, by its alias or by where it was copied from."""
        remote, _, alias = self._own.image.rpartition(":")
        kind = "virtual-machine" if self._is_vm else "container"
        for image in await self._api.get("images", recursion=1):
            names = {alias["name"] for alias in image.get("aliases") or []}
            names.add(image.get("update_source", {}).get("alias") or image["fingerprint"])
            if image["type"] == kind and (alias in names or image["fingerprint"] == alias):
                fingerprint: str = image["fingerprint"]
                return fingerprint
        vm = " --vm" if self._is_vm else ""
        raise EngineError(
            f"Incus at {self._api.where} does not have the image {self._own.image} for a {kind}: "
            f"fetch it with incus image copy {remote or 'images'}:{alias} local: "
            f"--alias {alias}{vm}"
        )

    def _check_devices(self, devices: dict[str, Any]) -> None:
        """Take the storage pool, and the network if it has one, from the profile."""
        roots = [device for device in devices.values() if device.get("path") == "/"]
        if not roots:
            raise EngineError(
                f"Incus's profile {_PROFILE} has no root disk: give it one, with "
                f"incus profile device add {_PROFILE} root disk path=/ pool=POOL"
            )
        self._pool = roots[0]["pool"]
        if self._settings.network == "internet":
            self._nics = {n: device for n, device in devices.items() if device["type"] == "nic"}
            if not self._nics:
                raise EngineError(
                    f"SANDBOX_NETWORK=internet: Incus's profile {_PROFILE} has no network; give it "
                    f"one, with incus profile device add {_PROFILE} eth0 nic network=NETWORK"
                )


def _remove(api: Any, name: str) -> None:
    """Stop, delete what a stop does not (what was never started), and see that it is gone."""
    from pylxd.exceptions import LXDAPIException

    instance = node(api, ("instances", name))
    stop = {"action": "stop", "force": True, "timeout": _REMOVAL}
    give_up_at = time.monotonic() + _REMOVAL
    while True:
        for step in (partial(instance.state.put, json=stop), instance.delete):
            with suppress(LXDAPIException, EngineError):  # it is off; it is gone
                finish(api, step(timeout=_REMOVAL), _REMOVAL)
        try:
            instance.get(timeout=_REMOVAL)
        except LXDAPIException as error:
            if error.response.status_code == 404:
                return
            raise
        if time.monotonic() > give_up_at:
            raise EngineError(f"Incus still has the sandbox {name}")
        time.sleep(0.1)  # it stops by itself at the moment, and is deleted after that
