"""The Docker image: built without a network, and run as compose.yaml does."""

import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.on_systemd.machine import PATIENCE
from tests.sandbox import engines

ROOT: Final = Path(__file__).parents[2]
OFFLINE: Final = (
    "--network=none",
    "--build-arg=BASE=clarad-sandbox",
    "--build-arg=PIP_NO_INDEX=1",
    "--build-arg=PIP_FIND_LINKS=/source/wheelhouse",
)


def docker(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *words],
        env=engines.environment(),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )


def docker_ok(*words: str) -> str:
    done = docker(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker_ok("inspect", name))[0]
    return found


@pytest.fixture(scope="module")
def image(
    wheelhouse: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The image of the source distribution of this checkout."""
    context = tmp_path_factory.mktemp("image") / "context"
    shutil.copytree(source, context)
    shutil.copy(ROOT / ".dockerignore", context)
    shutil.copytree(wheelhouse, context / "wheelhouse")
    name = f"clarad-test-{secrets.token_hex(4)}"
    try:
        # The first stage gets a name of its own, so that it can be removed.
        for extra in (f"--target=build --tag={name}-build", f"--tag={name}"):
            docker_ok("build", "--quiet", "--force-rm", *OFFLINE, *extra.split(), str(context))
        yield name
    finally:
        docker("image", "rm", "--force", name, f"{name}-build")


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[str]:
    """A container of it, with the walls of compose.yaml, that is healthy."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["clarad"]
    walls = (
        *(f"--tmpfs={place}" for place in service["tmpfs"]),
        *(f"--cap-drop={name}" for name in service["cap_drop"]),
        *(f"--security-opt={option}" for option in service["security_opt"]),
        *(["--read-only"] if service["read_only"] else []),
    )
    name = f"clarad-test-{secrets.token_hex(4)}"
    quick = ("--health-interval=1s", "--env=CLARA_GATEWAY_SECRET=a-long-word", "--network=none")
    try:
        docker_ok("run", "--detach", "--name", name, *walls, *quick, image)
        await_health(name, "healthy")
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def await_health(name: str, wanted: str) -> None:
    """Wait until the health check says so."""
    deadline = time.monotonic() + PATIENCE
    while (state := inspect(name)["State"])["Health"]["Status"] != wanted:
        said = docker("logs", name)
        assert state["Running"], said.stdout + said.stderr
        assert time.monotonic() < deadline, state
        time.sleep(0.1)


def test_it_answers(container: str) -> None:
    assert docker_ok("exec", container, "clarad", "send", "hello") == "hello"


def test_it_does_not_run_as_root(container: str) -> None:
    assert docker_ok("exec", container, "id", "--user") == "10001"


def test_it_has_a_personality_that_a_responder_can_read(container: str) -> None:
    text = docker_ok("exec", container, "cat", "/etc/clarad/personality.txt")
    assert text == (ROOT / "packaging" / "personality.txt").read_text().strip()


def test_a_daemon_that_hangs_is_not_healthy(container: str) -> None:
    docker_ok("kill", "--signal", "STOP", container)
    try:
        await_health(container, "unhealthy")
    finally:
        docker_ok("kill", "--signal", "CONT", container)
    await_health(container, "healthy")


def test_without_a_secret_it_says_what_is_missing(image: str) -> None:
    said = docker("run", "--rm", "--network=none", image)
    assert said.returncode == 78
    assert "CLARA_GATEWAY_SECRET" in said.stdout + said.stderr


def test_it_stops_when_told_to(image: str) -> None:
    name = f"clarad-test-{secrets.token_hex(4)}"
    docker_ok(
        "run", "--detach", "--name", name, "--health-interval=1s", "--network=none",
        "--env=CLARA_GATEWAY_SECRET=a-long-word", image,
    )  # fmt: skip
    try:
        await_health(name, "healthy")
        docker_ok("stop", "--time", "30", name)
        assert inspect(name)["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", "--volumes", name)
