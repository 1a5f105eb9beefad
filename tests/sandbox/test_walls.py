"""Every wall, tried from inside; and that an attempt through a missing one is noticed."""

import signal
from dataclasses import replace
from typing import Any, Final

import pytest
import trio

from sandbox import Keeper, Sandbox, SandboxError, doctor
from sandbox.docker import Docker
from sandbox.doctor import PROBES, Probe
from sandbox.sandbox import MAX_FILE
from tests.sandbox import engines
from tests.sandbox.conftest import StartKeeper

PATIENCE: Final = 120.0

FILL: Final = "cat /dev/zero > fill; cat /dev/zero > fill2; cat /dev/zero > /tmp/fill"


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.wall)
async def test_the_wall_holds(keeper: Keeper, probe: Probe) -> None:
    if not doctor.expected(probe, keeper):
        assert probe.only == "docker"  # Incus has another: its root is the sandbox's own disk
        return
    with trio.fail_after(PATIENCE):
        finding = await doctor.attempt(probe, await keeper.acquire("somebody"))
    assert finding.held, finding.saw


async def test_the_cpu_is_shared_out(sandbox: Sandbox) -> None:
    """Two processes that want a CPU each get one together."""
    spin = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    with trio.fail_after(PATIENCE):
        result = await sandbox.run(f"python3 -c '{spin}' & python3 -c '{spin}' & wait")
    assert result.cpu < result.wall * 1.25


async def test_a_file_cannot_be_larger_than_the_disk(sandbox: Sandbox) -> None:
    with trio.fail_after(PATIENCE):
        result = await sandbox.run(["truncate", "-s", "100G", "huge"])
    assert result.exit_status == -signal.SIGXFSZ


async def test_a_full_disk_leaves_the_sandbox_usable(sandbox: Sandbox) -> None:
    with trio.fail_after(PATIENCE):
        await sandbox.run(FILL)
        with pytest.raises(SandboxError, match=r"No space left|quota exceeded"):
            await sandbox.write_file("more", bytes(1 << 20))
        assert (await sandbox.run("rm fill* && echo x > more")).exit_status == 0


async def test_full_memory_on_top_of_a_full_disk_leaves_the_sandbox_usable(
    sandbox: Sandbox,
) -> None:
    with trio.fail_after(PATIENCE):
        await sandbox.run(FILL)
        hungry = await sandbox.run(["python3", "-c", "x = b'x' * (4 << 30)"])
        assert hungry.exit_status == -9
        assert (await sandbox.run("echo usable")).stdout.kept == b"usable\n"


async def test_what_a_file_holds_is_bounded(sandbox: Sandbox) -> None:
    with trio.fail_after(PATIENCE):
        await sandbox.run(f"truncate -s {MAX_FILE + 1} big")
        with pytest.raises(SandboxError, match="too much to read at once"):
            await sandbox.read_file("big")


async def test_the_limits_are_the_settings(mode: str, start_keeper: StartKeeper) -> None:
    own = "DOCKER" if mode == "docker" else "INCUS"
    variables = {f"{own}_SANDBOX_MEMORY": "128MiB", "SANDBOX_PIDS": "40"}
    keeper = await start_keeper(**variables)
    with trio.fail_after(PATIENCE):
        sandbox = await keeper.acquire("somebody")
        fits = await sandbox.run(["python3", "-c", "x = b'x' * (60 << 20)"])
        assert fits.exit_status == 0
        assert (await sandbox.run(["python3", "-c", "x = b'x' * (200 << 20)"])).out_of_memory
        forks = "import os, time\nn = 0\ntry:\n while os.fork(): n += 1\n time.sleep(9)"
        result = await sandbox.run(["python3", "-c", f"{forks}\nexcept OSError: print(n)"])
        assert int(result.stdout.kept) < 40


@pytest.mark.parametrize("mode", engines.only("docker"), indirect=True)
async def test_an_attempt_through_a_missing_wall_is_noticed(
    mode: str, nursery: trio.Nursery
) -> None:
    """A container with a network and a root that can be written."""

    class Weak(Docker):
        def _limits(self, client: Any) -> Any:
            limits = super()._limits(client)
            limits.update(ReadonlyRootfs=False, NetworkMode="bridge")
            return limits

    settings = replace(engines.settings(mode), network="internet")
    keeper = Keeper(
        Weak(settings, engines.keeper_name()), "weak", pool=0, capacity=2, idle_timeout=900
    )
    await nursery.start(keeper.run)
    sandbox = await keeper.acquire("somebody")
    found = {
        probe.wall: (await doctor.attempt(probe, sandbox)).held
        for probe in PROBES
        if probe.wall in ("user", "read-only root", "network")
    }
    assert found == {"user": True, "read-only root": False, "network": False}
    nursery.cancel_scope.cancel("the test has ended")
