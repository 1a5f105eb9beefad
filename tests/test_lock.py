"""The two lists of locked versions: what is packaged is what is tested."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pinned(lock: Path) -> dict[str, str]:
    """The entries of a list, hashes and all, by the names of the projects."""
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    return {entry.partition("==")[0]: entry for entry in entries}


def test_what_is_packaged_has_the_versions_that_are_tested() -> None:
    packaged = pinned(ROOT / "packaging" / "requirements.lock")
    tested = pinned(ROOT / "requirements.lock")
    assert "trio" in packaged
    assert {name: tested.get(name) for name in packaged} == packaged


def test_what_is_packaged_is_what_clarad_runs_with_and_no_tool() -> None:
    packaged = pinned(ROOT / "packaging" / "requirements.lock")
    assert not packaged.keys() & {"pytest", "mypy", "ruff", "hatchling", "hypothesis"}
