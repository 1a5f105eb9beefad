"""The version comes from git, so that two commits make two packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest
from packaging.version import Version

from clarad.version import NEXT_RELEASE, UNKNOWN
from tests.daemon_process import PATIENCE

pytestmark = pytest.mark.process

ROOT: Final = Path(__file__).parents[1]


class Repository:
    """The files of this checkout, in a repository with commits of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ours = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(ours, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        for name in listed.decode().split("\0"):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, directory / name)
        (directory / ".venv").symlink_to(sys.prefix)

    def run(self, *words: str | Path, cwd: str = ".", **environment: str) -> str:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            words,
            cwd=self.directory / cwd,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def commit(self, second: int) -> None:
        """Commit all files at this second of the year 2027."""
        if not (self.directory / ".git").exists():
            self.run("git", "init", "--quiet")
        self.run("git", "add", ".")
        author = ("-c", "user.name=Clara", "-c", "user.email=clara@localhost")
        words = ("commit", "--quiet", "--allow-empty", "--no-verify", f"--message={second}")
        self.run("git", *author, *words, GIT_COMMITTER_DATE=f"2027-01-01T01:00:{second:02} +0100")

    @property
    def checkout(self) -> str:
        """What an editable install says that it is."""
        return self.run(sys.executable, "-m", "clarad", "--version").removeprefix("clarad ")

    @property
    def deb(self) -> str:
        return self.run("packaging/deb", "--version")

    def build(self, target: str = "wheel", project: str = ".") -> Path:
        """Build a wheel or a source distribution; return its path."""
        words = ("-m", "hatchling", "build", "--target", target, "--directory")
        before = set(self.built.iterdir()) if self.built.exists() else set()
        self.run(sys.executable, *words, self.built, cwd=project)
        [path] = set(self.built.iterdir()) - before
        return path

    @property
    def built(self) -> Path:
        return self.directory / "dist"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def version_of(wheel: Path) -> str:
    """Return what the wheel's metadata and the module in it agree on."""
    name, version, _ = wheel.name.split("-", 2)
    packed = zipfile.ZipFile(wheel)
    assert f"\nVersion: {version}\n" in packed.read(f"{name}-{version}.dist-info/METADATA").decode()
    if name == "clarad":
        assert packed.read("clarad/VERSION").decode() == f"{version}\n"
    return version


def test_two_commits_make_two_packages_and_the_later_is_the_newer(repository: Repository) -> None:
    repository.commit(1)
    first, first_deb = version_of(repository.build()), repository.deb
    assert first == repository.checkout
    assert first.startswith(f"{NEXT_RELEASE}.dev20270101000001+g")
    assert first_deb == first.replace(".dev", "~dev")
    repository.commit(2)
    second, second_deb = version_of(repository.build()), repository.deb
    assert second == repository.checkout
    assert second == version_of(repository.build(project="packaging/adapters"))
    assert Version(first) < Version(second) < Version(NEXT_RELEASE)
    if shutil.which("dpkg"):
        for earlier, later in ((first_deb, second_deb), (second_deb, NEXT_RELEASE)):
            repository.run("dpkg", "--compare-versions", earlier, "lt", later)


def test_the_tagged_commit_is_the_release(repository: Repository) -> None:
    repository.commit(1)
    repository.run("git", "tag", f"v{NEXT_RELEASE}")
    assert version_of(repository.build()) == repository.deb == repository.checkout == NEXT_RELEASE


def test_a_package_with_changes_that_are_not_committed_says_so(repository: Repository) -> None:
    repository.commit(1)
    (repository.directory / "README.md").write_text("changed")
    assert version_of(repository.build()) == f"{repository.checkout}.dirty"


def test_a_source_distribution_keeps_its_version_without_git(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository.commit(1)
    unpacked = tmp_path_factory.mktemp("unpacked")
    repository.run("tar", "-C", unpacked, "--strip=1", "-xf", repository.build("sdist"))
    wheel = ("-m", "hatchling", "build", "--target", "wheel", "--directory", repository.built)
    expected = repository.checkout
    subprocess.run([sys.executable, *wheel], cwd=unpacked, check=True)
    [built] = repository.built.glob("*.whl")
    assert version_of(built) == expected


def test_files_without_git_have_no_version_and_the_build_says_so(repository: Repository) -> None:
    # Not even that of a repository around them.
    assert repository.checkout == UNKNOWN
    assert version_of(repository.build()) == UNKNOWN
