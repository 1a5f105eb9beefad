"""The version of clarad: the release being prepared, and the commit that this is.

Before the release 0.2.0 it is, for example, 0.2.0.dev20261130203546+g8e2b72d00: the UTC time of the
commit, by which pip and dpkg order versions, and its hash. The commit with the tag v0.2.0 is 0.2.0.
A build writes its version to the file VERSION beside this module (packaging/build_hook.py). A
checkout has no such file, so it asks git: an editable install is always at the commit checked out.

Rejected: hatch-vcs. Without tags it needs a full clone to count commits, it writes into the source
tree, and the version of an editable install is that of the day on which it was installed.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

NEXT_RELEASE: Final = "0.2.0"
UNKNOWN: Final = f"{NEXT_RELEASE}.dev0+unknown"
"""Source code without VERSION and without git, such as an archive of the repository."""

_ROOT: Final = Path(__file__).parents[1]


def read_version(*, mark_changes: bool = False) -> str:
    """Return the version of this build or checkout; UNKNOWN if neither VERSION nor git says it.

    With `mark_changes`, a checkout that differs from its commit is `.dirty`.
    """
    try:
        return Path(__file__).with_name("VERSION").read_text().strip()
    except FileNotFoundError:
        pass
    # git would look for a repository in the directories above as well.
    if not (_ROOT / ".git").exists():
        return UNKNOWN
    tag = f"v{NEXT_RELEASE}"
    form = ("--date=format-local:%Y%m%d%H%M%S", "--abbrev=9", "--format=%cd %h %D")
    try:
        time, commit, *tags = _git(
            "log", "-1", "--no-show-signature", f"--decorate-refs=refs/tags/{tag}", *form
        ).split()
        dirty = mark_changes and _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN  # there is no git, no commit yet, or the checkout belongs to another user
    if tag in tags and not dirty:
        return NEXT_RELEASE
    return f"{NEXT_RELEASE}.dev{time}+g{commit}{'.dirty' if dirty else ''}"


def _git(*words: str) -> str:
    here = ("git", "--no-optional-locks", f"--git-dir={_ROOT}/.git", f"--work-tree={_ROOT}")
    return subprocess.run(  # noqa: S603
        [*here, *words],
        cwd=_ROOT,
        env=os.environ | {"TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


VERSION: Final = read_version()
