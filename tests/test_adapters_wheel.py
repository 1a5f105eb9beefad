"""The second distribution: what adapters need of clarad, in an environment with nothing else."""

import os
import shutil
import socket
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import trio
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.daemon_process import PATIENCE, daemon
from tests.examples.test_lines import RESPONDER, connect

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "lines.py"
SOURCE = ROOT / "packaging" / "adapters"


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command that has to succeed, with nothing of clarad in its environment."""
    ours = ("CLARA_", "PYTHON")
    env = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, directory: Path) -> Path:
    """Build the wheel of a project."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=source)
    [wheel] = directory.glob("*.whl")
    return wheel


class Venv:
    """A virtual environment that pip installs into, without an index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        run(sys.executable, "-m", "venv", directory, cwd=ROOT)
        self.python_path = directory / "bin" / "python"
        self._site = Path(self.python("-c", "import site; print(site.getsitepackages()[0])"))

    def python(self, *words: str | Path) -> str:
        return run(self.python_path, *words, cwd=self.directory).strip()

    def pip(self, *words: str | Path) -> str:
        return self.python("-m", "pip", "--disable-pip-version-check", *words)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--quiet", "--no-index", "--no-deps", wheel)

    def copy(self, library: Distribution) -> None:
        """Put a library here as it is installed beside these tests."""
        for file in library.files or ():
            if ".." not in file.parts:
                target = self._site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(library.locate_file(file)), target)

    @property
    def imported(self) -> str:
        """The directory that `clarad` is imported from, from where pip installs into."""
        found = Path(self.python("-c", "import clarad.adapters; print(clarad.__file__)"))
        return f"{found.parents[1].relative_to(self._site)}"


def needed(names: list[str]) -> dict[str, Distribution]:
    """Return these libraries, and those that they need."""
    found: dict[str, Distribution] = {}
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found[name] = distribution(name)
            wants = map(Requirement, found[name].requires or ())
            names += [want.name for want in wants if not want.marker or want.marker.evaluate()]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SOURCE, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """An environment with clarad-adapters, and what it says that it needs."""
    made = Venv(tmp_path_factory.mktemp("venv"))
    made.install(wheel)
    for library in needed(["anyio", "msgspec", "wsproto"]).values():
        made.copy(library)
    return made


def test_it_needs_three_libraries_as_clarad_does_and_no_others(venv: Venv) -> None:
    assert venv.pip("check") == "No broken requirements found."
    ours = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["dependencies"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [Requirement(text).name for text in ours] == ["anyio", "msgspec", "wsproto"]
    assert set(ours) <= set(whole)


async def test_the_example_runs_with_it(venv: Venv, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with daemon(tmp_path, **RESPONDER) as process:
        env = process.environment | {"CLARA_GATEWAY_URL": process.url}
        command = [f"{venv.python_path}", f"{EXAMPLE}", f"{port}"]
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, env=env, cwd=tmp_path, check=False)
            await nursery.start(start)
            with trio.fail_after(PATIENCE):
                async with await connect(port) as user:
                    await user.send(b"hello\n")
                    heard = b""
                    while not heard.endswith(b"\n"):
                        heard += await user.receive()
            nursery.cancel_scope.cancel("it has answered")
    assert heard == b"you said hello\n"


def test_what_uses_it_is_checked_by_its_types(venv: Venv, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", venv.python_path)
    assert run(*mypy, EXAMPLE.name, cwd=tmp_path).startswith("Success")
    (tmp_path / "wrong.py").write_text("from clarad.adapters import open_adapter\nopen_adapter(1)")
    with pytest.raises(AssertionError, match="arg-type"):
        run(*mypy, "wrong.py", cwd=tmp_path)


def test_beside_clarad_neither_breaks_the_other(wheel: Path, venv: Venv, tmp_path: Path) -> None:
    assert venv.imported == "_clarad_adapters"
    venv.install(build(ROOT, tmp_path))
    assert venv.imported == "."
    venv.pip("uninstall", "--quiet", "--yes", "clarad-adapters")
    assert venv.imported == "."
    venv.install(wheel)
    assert venv.imported == "."
    venv.pip("uninstall", "--quiet", "--yes", "clarad")
    assert venv.imported == "_clarad_adapters"
