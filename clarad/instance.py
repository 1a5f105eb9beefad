"""Which installation of clarad this is: a name of its own for what it leaves outside its files."""

import secrets
from pathlib import Path
from typing import Final

FILE_NAME: Final = "instance"


def identify(state_dir: Path) -> str:
    """Return the name of the installation that keeps its state here; the first call makes it.

    Its commands and its sandboxes carry it, so that its next start knows what is its own.

    Raises:
        OSError: the directory cannot be read or written.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        beside = path.with_suffix(".new")
        beside.write_text(secrets.token_hex(8) + "\n")
        beside.replace(path)
    return path.read_text().strip()


def label(state_dir: Path) -> str:
    """Return what this installation's sandboxes are labelled with; raises as `identify`."""
    return f"clarad-{identify(state_dir)}"
