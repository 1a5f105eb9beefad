"""The wheel: `clarad migrate` and `clarad init` work from it, far from any checkout."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from clarad.store.migrate import HEAD
from clarad.version import read_version

pytestmark = pytest.mark.process

VERSION = read_version(mark_changes=True)
ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "hooks" / "hooks.yaml.example"
TASKS = ROOT / "scheduler.yaml.example"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", f"{directory}", cwd=ROOT)
    [built] = directory.iterdir()
    return built


@dataclass
class Installed:
    """The wheel, unpacked by pip, and a directory that has nothing to do with it."""

    site: Path
    elsewhere: Path

    def python(self, *arguments: str) -> str:
        return self._run(sys.executable, *arguments)

    def clarad(self, *arguments: str) -> str:
        return self._run(f"{self.site / 'bin' / 'clarad'}", *arguments)

    def _run(self, *words: str) -> str:
        # Before the environment's own packages, among which is the checkout.
        settings = {"PYTHONPATH": f"{self.site}", "CLARA_STATE_DIR": f"{self.elsewhere / 'state'}"}
        return run(*words, cwd=self.elsewhere, **settings)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the wheel."""
    directory = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    run(sys.executable, *pip, "--no-deps", "--target", f"{directory}", f"{wheel}", cwd=ROOT)
    return directory


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Installed:
    """The installed wheel, with a new state directory."""
    return Installed(site, tmp_path)


def run(*words: str, cwd: Path, **environment: str) -> str:
    ours = ("CLARA_", "DATABASE_URL", "STATE_DIRECTORY", "PYTHONPATH")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        words, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_what_runs_in_these_tests(installed: Installed) -> None:
    where = installed.python("-c", "import clarad; print(clarad.__file__)")
    assert Path(where.strip()) == installed.site / "clarad" / "__init__.py"


def test_an_installed_clarad_migrates_its_database(installed: Installed) -> None:
    assert f"applied {HEAD}  " in installed.clarad("migrate")
    assert (installed.elsewhere / "state" / "clarad.db").is_file()


def test_an_installed_clarad_says_where_its_database_is(installed: Installed) -> None:
    installed.clarad("migrate")
    expected = f"revision  {HEAD}\nhead      {HEAD}\npending   nothing\n"
    assert installed.clarad("migrate", "status") == expected


def test_an_installed_clarad_rolls_back(installed: Installed) -> None:
    installed.clarad("migrate")
    assert f"\nrolled back {HEAD}  " in installed.clarad("migrate", "rollback", "--yes")


def test_an_installed_clarad_runs_as_a_module_too(installed: Installed) -> None:
    assert installed.python("-m", "clarad", "--version") == f"clarad {VERSION}\n"


def test_an_installed_clarad_writes_its_examples(installed: Installed) -> None:
    said = installed.clarad("init")
    assert said == "hooks/hooks.yaml is written\nscheduler.yaml is written\n"
    assert (installed.elsewhere / "hooks" / "hooks.yaml").read_bytes() == HOOKS.read_bytes()
    assert (installed.elsewhere / "scheduler.yaml").read_bytes() == TASKS.read_bytes()


def test_the_source_distribution_has_what_the_wheel_is_made_of(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", f"{tmp_path}", cwd=ROOT)
    [built] = tmp_path.iterdir()
    with tarfile.open(built) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = [HOOKS, TASKS, ROOT / "migrations" / "env.py", ROOT / "clarad" / "__main__.py"]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= packed


def test_the_wheel_has_every_module_and_every_migration(wheel: Path) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for package in ("clarad", "sandbox")
        for path in (ROOT / package).rglob("*.py")
    }
    migrations = {
        f"clarad/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "migrations").rglob("*.*")
        if path.suffix in (".py", ".mako")
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed >= source | migrations | {"clarad/py.typed", "sandbox/py.typed"}
    assert {name.partition("/")[0] for name in packed} == {"clarad", "sandbox"}


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel)
    folder = f"clarad-{VERSION}.dist-info"
    about = email.message_from_bytes(packed.read(f"{folder}/METADATA"))
    assert about["Name"] == "clarad"
    assert about["Version"] == VERSION
    assert about["License-Expression"] == "MIT"
    assert "psycopg[binary]<4,>=3.2; extra == 'postgres'" in about.get_all("Requires-Dist", [])
    assert f"{folder}/licenses/LICENSE" in packed.namelist()
