"""`clarad setup-systemd`: the units for a clarad that pip or pipx has installed."""

import argparse
import difflib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clarad.cli import print_error

# The vendor's directories for what no package of the distribution has brought (systemd.unit(5),
# sysusers.d(5), tmpfiles.d(5)); /etc stays the administrator's.
_TARGETS: Final = {
    "clarad.service": "/usr/local/lib/systemd/system/clarad.service",
    "clarad.socket": "/usr/local/lib/systemd/system/clarad.socket",
    "clarad.sysusers": "/usr/local/lib/sysusers.d/clarad.conf",
    "clarad.tmpfiles": "/usr/local/lib/tmpfiles.d/clarad.conf",
    "clarad.catalog": "/usr/local/lib/systemd/catalog/clarad.catalog",
    "docker.conf": "/usr/local/share/clarad/docker.conf",
    "incus.conf": "/usr/local/share/clarad/incus.conf",
    "operations.md": "/usr/local/share/doc/clarad/operations.md",
}
_SETTINGS: Final = Path("/etc/clarad/clarad.env")
_PACKAGED: Final = Path("/usr/lib/systemd/system/clarad.service")

# ProtectHome= and PrivateTmp= hide these from the daemon.
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - not used

_MAKE: Final = ("systemd-sysusers", "systemd-tmpfiles --create", "journalctl --update-catalog")
_RELOAD: Final = "systemctl daemon-reload"
_FIRST: Final = (*_MAKE, _RELOAD, "systemctl enable --now clarad.service")
_AGAIN: Final = (*_MAKE, _RELOAD, "systemctl try-restart clarad.service")
_BEFORE_REMOVAL: Final = ("systemctl disable --now clarad.socket clarad.service",)
_AFTER_REMOVAL: Final = (_RELOAD, "journalctl --update-catalog")


@dataclass(frozen=True)
class File:
    """A file that the setup writes, and its text."""

    target: Path
    text: str

    @property
    def change(self) -> str:
        """What writing it would change: a diff, empty if nothing would."""
        is_there = self.target.exists()
        before = self.target.read_text(encoding="utf-8") if is_there else ""
        lines = difflib.unified_diff(
            before.splitlines(keepends=True),
            self.text.splitlines(keepends=True),
            str(self.target) if is_there else "/dev/null",
            str(self.target),
        )
        return "".join(lines)

    def write(self) -> None:
        """Write it as a whole or not at all; everybody can read it."""
        for directory in reversed([self.target.parent, *self.target.parent.parents]):
            if not directory.exists():
                directory.mkdir()
                directory.chmod(0o755)  # whatever the umask
        beside = self.target.with_name(f".{self.target.name}.new")
        beside.write_text(self.text, encoding="utf-8")
        beside.chmod(0o644)
        beside.replace(self.target)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Install the systemd units for a clarad that pip or pipx has installed, make the user\n"
        "clarad, and start the daemon. All that will be done is shown first. After an upgrade,\n"
        "run it again. The Debian package does all this by itself."
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--remove",
        action="store_true",
        help="take the units away again; settings, data and the user stay",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the changes, ask, and make them; 1 if they fail, or are not wanted."""
    executable = Path(sys.prefix) / "bin" / "clarad"
    if problem := _obstacle(executable):
        print_error(problem)
        return 1
    try:
        if arguments.remove:
            return _remove(ask=not arguments.yes)
        return _install(files(executable), ask=not arguments.yes)
    except subprocess.CalledProcessError as error:
        print_error(
            f"`{' '.join(error.cmd)}` failed, see above; journalctl -xeu clarad may say more"
        )
    except OSError as error:
        print_error(f"{error.filename}: {error.strerror}")
    return 1


def files(executable: Path) -> list[File]:
    """Return the files that the units consist of, for a `clarad` that lies there."""
    found = [
        File(Path(target), _adapted(source.read_text(encoding="utf-8"), executable))
        for name, target in _TARGETS.items()
        if (source := _source(name)) is not None
    ]
    settings = _source(_SETTINGS.name)
    assert settings is not None
    if not _SETTINGS.exists():  # then it is the administrator's
        found.append(File(_SETTINGS, _adapted(settings.read_text(encoding="utf-8"), executable)))
    return found


def _source(name: str) -> Path | None:
    """Return where a file is: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent.parent
    places = (package / "units", package.parent / "systemd", package.parent / "docs")
    return next((file for place in places if (file := place / name).is_file()), None)


def _adapted(text: str, executable: Path) -> str:
    """Put our paths into the place of those of the Debian package."""
    ours = text.replace("/usr/bin/clarad", str(executable))
    return ours.replace("/usr/share/", "/usr/local/share/")


def _obstacle(executable: Path) -> str | None:
    """Say why nothing can be set up here."""
    if os.geteuid() != 0:
        return "only root can do that: sudo clarad setup-systemd"
    if shutil.which("systemctl") is None:
        return "this machine has no systemd; `clarad run` runs the daemon in the foreground"
    if _PACKAGED.exists():
        return "the Debian package has installed the units already"
    if not executable.exists():
        return f"there is no {executable}; install clarad with pipx or in a virtual environment"
    for needed in (executable, Path(sys.executable).resolve()):
        if str(needed).startswith(_HIDDEN):
            return (
                f"the daemon may not look into homes, and {needed} is in one: install clarad for "
                "the whole machine, as with PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin"
            )
    return None


def _install(wanted: list[File], *, ask: bool) -> int:
    changes = {file: change for file in wanted if (change := file.change)}
    if not changes:
        print("Everything is installed already.")
        return 0
    is_new = not Path(_TARGETS["clarad.service"]).exists()
    commands = _FIRST if is_new else _AGAIN
    print("\n".join(changes.values()))
    if not _confirmed("These files are written", commands, ask=ask):
        return 1
    for file in changes:
        file.write()
    _run(commands)
    print(f"Settings are in {_SETTINGS}; `systemctl status clarad` says how the daemon is.")
    return 0


def _remove(*, ask: bool) -> int:
    there = [path for target in _TARGETS.values() if (path := Path(target)).exists()]
    if not there:
        print("Nothing is installed.")
        return 0
    print("\n".join(map(str, there)))
    if not _confirmed("These files are deleted", (*_BEFORE_REMOVAL, *_AFTER_REMOVAL), ask=ask):
        return 1
    _run(_BEFORE_REMOVAL)
    for path in there:
        path.unlink()
    _run(_AFTER_REMOVAL)
    print("The settings in /etc/clarad, the data in /var/lib/clarad and the user clarad stay.")
    return 0


def _confirmed(title: str, commands: tuple[str, ...], *, ask: bool) -> bool:
    print(f"\n{title}, and these commands run:\n")
    print("\n".join(f"    {command}" for command in commands), flush=True)
    if not ask:
        return True
    try:
        answer = input("\nGo on? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return True
    print_error("nothing has changed")
    return False


def _run(commands: tuple[str, ...]) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)  # noqa: S603 - all of them are written above
