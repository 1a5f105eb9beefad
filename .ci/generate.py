"""Writes the files that are made from code; with `--check`, fails if one of them is out of date."""

import sys
from pathlib import Path
from typing import Final

from clarad.systemd import catalogue
from docs import bounds

ROOT: Final = Path(__file__).parents[1]
GENERATED: Final = {
    "systemd/clarad.catalog": catalogue.as_catalogue,
    "docs/bounds.md": bounds.page,
}


def main(*words: str) -> int:
    """Write all of them, or compare each with what would be written."""
    stale = []
    for name, generate in GENERATED.items():
        text, path = generate(), ROOT / name
        if text != path.read_text():
            stale.append(name)
            if not words:
                path.write_text(text)
    if words == ("--check",):
        for name in stale:
            print(f"{name} is out of date: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    print("".join(f"{name} is written\n" for name in stale), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
